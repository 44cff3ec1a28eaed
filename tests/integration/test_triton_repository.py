"""A Triton model repository as kind `tree`: laid out as Triton wants it, and a new version of it beside the old one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.fakes.models import triton_repository
from tests.fakes.origin import Origin


def pull(uri: str, root: Path, *options: str) -> dict[str, Any]:
    """What the pull said last."""
    command = [sys.executable, "-m", "cacheagent", "pull", uri, "--kind", "tree", "--root", str(root), "-o", "json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def content(path: str) -> dict[str, bytes]:
    """Every file that a server would see below --model-repository."""
    root = Path(path) / "files"
    return {str(each.relative_to(root)): each.read_bytes() for each in root.rglob("*") if each.is_file()}


def publish(origin: Origin, files: dict[str, bytes]) -> None:
    """The repository as it shall be at the origin, with checksums."""
    for path, body in files.items():
        origin.put(f"repository/{path}", body)
    origin.add_sums("repository", paths=files)


def test_versions_of_a_repository(tmp_path: Path, origin: Origin) -> None:
    """Numbered directories, an ensemble without weights, the vLLM backend's `model.json`, labels and configurations
    arrive as they are. A model's new version is a new tree, for which only the new file is fetched; the tree that a
    server has mounted stays as it was, so polling it finds nothing."""
    first = triton_repository()
    publish(origin, first)
    uri = f"{origin.url}/repository/"
    before = pull(uri, tmp_path / "cache")
    assert content(before["path"]) == first

    added = {"detector/3/model.onnx": b"onnx" * 50_000}
    publish(origin, first | added)
    after = pull(uri, tmp_path / "cache", "--refresh")
    assert after["digest"] != before["digest"]
    assert content(after["path"]) == first | added
    assert after["bytes_fetched"] == len(added["detector/3/model.onnx"])
    assert content(before["path"]) == first
