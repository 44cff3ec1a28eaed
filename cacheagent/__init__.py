"""One verified copy of each model on each node's NVMe, before it is needed."""

__version__ = "0.1.0"
