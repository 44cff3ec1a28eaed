"""Commands on the cluster: they read and write its objects with the operator's own kubeconfig, and nothing else."""
