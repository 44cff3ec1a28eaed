"""The command line: what a person types, what they read, and the exit codes that pipelines act on."""
