"""An epoch of PyTorch's DataLoader: from the cache, from S3 by boto3, and from a slow mount."""
