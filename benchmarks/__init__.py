"""Judges the engine against its peers on the machine it runs on: `python -m benchmarks --help`."""
