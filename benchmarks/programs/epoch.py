"""A dataset made, or one epoch of a DataLoader over it, as JSON in the variable REQUEST says; torch has to be there.

`make`: so many noisy JPEGs in folders and the same in tar shards. Else `layout` folder or shards, from a `path`, or
from S3 when there is none; with `decode` false images are read and no more, as where a GPU decodes them. Prints one
line of JSON: seconds from the list of files to the last batch, images, and bytes: decoded, or as they were read.
"""

import io
import json
import os
import random
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

SIDE = 128
CLASSES = 100
request: dict[str, Any] = json.loads(os.environ["REQUEST"])


def make(root: Path, images: int, shards: int) -> None:
    """The dataset in both layouts; equal arguments give equal bytes."""
    generator = random.Random(0)
    (root / "shards").mkdir(parents=True)
    with ExitStack() as stack:
        places = [root / f"shards/images-{number:05}.tar" for number in range(shards)]
        archives = [stack.enter_context(tarfile.open(place, "w")) for place in places]
        for number in range(images):
            picture = Image.frombytes("RGB", (SIDE, SIDE), generator.randbytes(3 * SIDE * SIDE)).resize((SIDE, SIDE))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=85)
            path = root / f"folder/{number % CLASSES:03}/{number:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            archives[number % shards].add(path, path.name)


def sample(content: bytes) -> "torch.Tensor":
    """As a training step wants it; not decoded it is only how much was read, since images differ in size."""
    if not request["decode"]:
        return torch.tensor([len(content)])
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)


def client() -> Any:
    """Of the S3 server, with boto3's own settings."""
    return boto3.client("s3", endpoint_url=request["endpoint"])


def keys() -> list[str]:
    """All objects of the dataset."""
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=request["bucket"], Prefix=f"{request['layout']}/")
    return [entry["Key"] for page in pages for entry in page["Contents"]]


class Files(Dataset[Any]):  # type: ignore[misc]  # torch is not seen here
    """Single images, by path or from S3; each worker has a client of its own."""

    def __init__(self) -> None:
        self.names = sorted(str(path) for path in Path(request["path"]).rglob("*.jpg")) if request["path"] else keys()
        self.client: Any = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        if request["path"]:
            return sample(Path(self.names[index]).read_bytes())
        self.client = self.client or client()
        return sample(self.client.get_object(Bucket=request["bucket"], Key=self.names[index])["Body"].read())


class Shards(IterableDataset[Any]):  # type: ignore[misc]  # see Files
    """Tar shards read from front to back, every n-th by each worker."""

    def __init__(self) -> None:
        self.names = sorted(str(path) for path in Path(request["path"]).rglob("*.tar")) if request["path"] else keys()

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        s3 = None if request["path"] else client()
        for name in self.names[worker.id :: worker.num_workers]:
            with (
                s3.get_object(Bucket=request["bucket"], Key=name)["Body"] if s3 else open(name, "rb") as source,
                tarfile.open(fileobj=source, mode="r|") as archive,
            ):
                for member in archive:
                    part = archive.extractfile(member)
                    assert part is not None
                    yield sample(part.read())


def epoch() -> None:
    """Every image once, in batches, in random order where the layout permits."""
    began = time.monotonic()
    data = Files() if request["layout"] == "folder" else Shards()
    shuffle = request["layout"] == "folder"
    loader = DataLoader(data, batch_size=64, shuffle=shuffle, num_workers=request["workers"])
    images = size_bytes = 0
    for batch in loader:
        images += batch.shape[0]
        size_bytes += batch.numel() if request["decode"] else int(batch.sum())
    print(json.dumps({"seconds": time.monotonic() - began, "images": images, "bytes": size_bytes}))


if "make" in request:
    make(Path(request["make"]), request["images"], request["shards"])
else:
    epoch()
