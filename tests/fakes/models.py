"""Models that tests put behind a source: checkpoints, a Triton repository, a dataset of many small files."""

from __future__ import annotations

import json
import random
from pathlib import Path

from cacheagent.demo.checkpoint import checkpoint_files, plan_layout, shard_parts

MIB = 2**20


def checkpoint(*, size_bytes: int = 4 * MIB, shards: int = 3, seed: int = 0) -> dict[str, bytes]:
    """A Llama checkpoint in memory, by path."""
    files = checkpoint_files(size_bytes=size_bytes, shards=shards, seed=seed)
    return {name: b"".join(parts) for name, parts in files}


def another_shard(*, size_bytes: int = 4 * MIB, shards: int = 3, seed: int, shard: int) -> dict[str, bytes]:
    """One shard (counted from 0) of the checkpoint of another seed: a revision that differs in that file only."""
    layout = plan_layout(size_bytes, shards)
    return {layout.shard_name(shard): b"".join(shard_parts(layout.split()[shard], seed=seed, shard=shard))}


def triton_repository(*, seed: int = 0, plan_bytes: int = MIB) -> dict[str, bytes]:
    """A Triton model repository: an ONNX model with two versions, a TensorRT plan, an ensemble without weights, and
    what the vLLM backend needs: a path to weights that are a model of their own."""
    generator = random.Random(seed)
    return {
        "detector/config.pbtxt": b'name: "detector"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 8\n',
        "detector/labels.txt": b"cat\ndog\n",
        "detector/1/model.onnx": generator.randbytes(plan_bytes // 2),
        "detector/2/model.onnx": generator.randbytes(plan_bytes // 2 + 1),
        "embedder/config.pbtxt": b'name: "embedder"\nplatform: "tensorrt_plan"\n',
        "embedder/1/model.plan": generator.randbytes(plan_bytes),
        "pipeline/config.pbtxt": b'name: "pipeline"\nplatform: "ensemble"\n',
        "pipeline/1/.keep": b"",
        "llama/config.pbtxt": b'backend: "vllm"\ninstance_group [{ count: 1, kind: KIND_MODEL }]\n',
        "llama/1/model.json": b'{"model": "/weights/llama", "gpu_memory_utilization": 0.9}\n',
    }


def dataset(*, files: int = 200, file_bytes: int = 2000, seed: int = 0) -> dict[str, bytes]:
    """Many small files in some directories, and a JSON that names them."""
    generator = random.Random(seed)
    images = {f"train/{number % 10}/{number:06}.jpg": generator.randbytes(file_bytes) for number in range(files)}
    return {**images, "annotations.json": json.dumps(sorted(images)).encode()}


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    """Put files of a model below a directory."""
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
