"""Everything that knows Kubernetes: the custom resources, the API client, the agent's and the controller's side, the
webhook."""
