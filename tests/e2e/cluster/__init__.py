"""A real Kubernetes of several nodes on this machine, for the tests: see tests/e2e/README.md."""
