"""What travels between the kubelet and the driver. `*_pb2.py` and `*_pb2.pyi` are made by `scripts/protos`."""
