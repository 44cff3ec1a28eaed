"""A random Llama of four layers that an engine can really compute with, in two shards, with a tokenizer of one token a
character; and what it says, computed by transformers from the files themselves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save_file

from cacheagent.demo.checkpoint import plan_layout, write_checkpoint

REPO: Final = "org/tiny-llama"
PROMPT: Final = "The weights are"
TOKENS: Final = 12
SIZE_BYTES: Final = 8_498_688
"""Of the tensors: four layers, 256 wide, 1,024 inside."""
SHARDS: Final = 2

_GREEDY: Final = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import AutoTokenizer, LlamaForCausalLM
folder, prompt, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
with torch.no_grad():
    for _ in range(count):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
print(json.dumps(ids[0, -count:].tolist()))
"""


def write_tiny_llama(folder: Path, *, seed: int = 1) -> None:
    """The demo's checkpoint, whose numbers are noise of any size, with small ones instead."""
    write_checkpoint(folder, size_bytes=SIZE_BYTES, shards=SHARDS)
    layout = plan_layout(SIZE_BYTES, SHARDS)
    generator = np.random.default_rng(seed)
    for shard, tensors in enumerate(layout.split()):
        arrays = {
            tensor.name: (
                np.ones(tensor.shape, np.float16)
                if len(tensor.shape) == 1  # norms
                else (generator.standard_normal(tensor.shape) * 0.1).astype(np.float16)
            )
            for tensor in tensors
        }
        save_file(arrays, folder / layout.shard_name(shard), metadata={"format": "pt"})


def greedy_tokens(python: Path, folder: Path) -> list[int]:
    """The likeliest tokens after `PROMPT`, by transformers and torch from these very files, without any cache."""
    done = subprocess.run(
        [python, "-c", _GREEDY, folder, PROMPT, str(TOKENS)], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tokens: list[int] = json.loads(done.stdout.splitlines()[-1])
    return tokens
