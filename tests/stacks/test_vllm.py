"""Real vLLM on CPUs serves what the cache published, from read-only mounts: by path, and by repository id offline."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from cacheagent.demo.child import ChildEnded, free_ports, running_child, wait_until_ready
from tests.stacks.environments import VLLM, find
from tests.stacks.tiny_llama import PROMPT, REPO, TOKENS, greedy_tokens, write_tiny_llama
from tests.unit.test_store_views import read_only_mount

pytestmark = [pytest.mark.stacks, pytest.mark.timeout(1800)]

START_S: Final = 600.0
"""Generous: importing it alone takes half a minute on two quiet cores."""
NO_HUB: Final = "http://127.0.0.1:9"
"""The discard port: whoever asks the Hub all the same is refused at once."""


class Scene(NamedTuple):
    """`program`: vLLM's own folder. `origin`: the files as they were made. `published`: what the cache made of them."""

    program: Path
    origin: Path
    published: Path
    expected: list[int]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A model, pulled from a mounted tree by the real engine."""
    program = find(VLLM)
    folder = tmp_path_factory.mktemp("vllm")
    origin, root = folder / "origin/tiny-llama", folder / "cache"
    write_tiny_llama(origin)
    command = [sys.executable, "-m", "cacheagent", "pull", f"file://{origin}", "--root", str(root), "--repo-id", REPO]
    pulled = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert pulled.returncode == 0, pulled.stderr
    published = Path(pulled.stdout.strip()).parent
    return Scene(program, origin, published, greedy_tokens(program / "bin/python", origin))


@contextlib.contextmanager
def serving(scene: Scene, model: str, scratch: Path, **variables: str) -> Iterator[int]:
    """Its port, once `vllm serve MODEL` is healthy. Raises ChildEnded when it ends instead."""
    (port,) = free_ports(1)
    log_path = scratch / "vllm.log"
    command: list[str | Path] = [
        scene.program / "bin/vllm", "serve", model, "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "2", "--enforce-eager",
    ]  # fmt: skip
    environment = {
        "HOME": str(scratch),
        "HF_HOME": str(scratch / "huggingface"),
        "HF_ENDPOINT": NO_HUB,
        "PATH": f"{scene.program / 'bin'}:{os.environ['PATH']}",
        "VLLM_CACHE_ROOT": str(scratch / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **variables,
    }
    with running_child(command, log_path=log_path, environment=environment, stop_timeout_s=30) as child:
        wait_until_ready(child, lambda: is_healthy(port), name="vLLM", log_path=log_path, timeout_s=START_S)
        yield port


def is_healthy(port: int) -> bool:
    """Whether it answers."""
    try:
        return ask(port, "GET", "/health")[0] == 200
    except OSError:
        return False


def ask(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Status and body."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()


def completion(port: int, model: str) -> list[int]:
    """The tokens that it answers to `PROMPT`, greedily, under the name that it was started with."""
    asked = {
        "model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip
    status, body = ask(port, "POST", "/v1/completions", asked)
    assert status == 200, body
    answer = json.loads(body)
    assert answer["choices"][0]["text"]
    tokens: list[int] = answer["choices"][0]["token_ids"]
    return tokens


def test_by_path(scene: Scene, tmp_path: Path) -> None:
    """`vllm serve /mnt/models` on the files view: it says what the origin's own weights say."""
    with (
        read_only_mount(scene.published / "files", tmp_path / "models") as mount,
        serving(scene, str(mount), tmp_path) as port,
    ):
        assert completion(port, str(mount)) == scene.expected


def test_by_repository_id(scene: Scene, tmp_path: Path) -> None:
    """`vllm serve org/name` on the hf view with what the webhook sets, and nothing else: no Hub is asked."""
    with (
        read_only_mount(scene.published / "hf", tmp_path / "models") as mount,
        serving(scene, REPO, tmp_path, HF_HUB_CACHE=str(mount), HF_HUB_OFFLINE="1") as port,
    ):
        assert completion(port, REPO) == scene.expected


def test_by_repository_id_without_the_cache(scene: Scene, tmp_path: Path) -> None:
    """The positive control: with an empty cache it has no such model, says so, and ends."""
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises(ChildEnded, match="vLLM ended with status"),
        serving(scene, REPO, tmp_path, HF_HUB_CACHE=str(tmp_path / "empty"), HF_HUB_OFFLINE="1"),
    ):
        pass
    assert "snapshot folder" in (tmp_path / "vllm.log").read_text()
