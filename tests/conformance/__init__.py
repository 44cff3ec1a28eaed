"""One suite for each contract, run on every implementation of it."""
