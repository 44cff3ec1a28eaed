"""Servers, file systems and models that tests, benchmarks and the demo stand on."""
