"""The generated messages are those of the .proto files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["csi", "pluginregistration"])
def test_generated_code_is_fresh(tmp_path: Path, name: str) -> None:
    """What `scripts/protos` would write is what is there."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={TOP}"]
    subprocess.run(
        [*command, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"csi/proto/{name}.proto"], check=True, cwd=TOP
    )
    for suffix in ("_pb2.py", "_pb2.pyi"):
        file = f"csi/proto/{name}{suffix}"
        assert (tmp_path / file).read_text() == (TOP / file).read_text(), "run scripts/protos"
