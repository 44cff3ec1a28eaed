"""The scenario of `make bench`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.scale.cluster import REPOSITORY
from benchmarks.scale.figures import Scale
from benchmarks.scale.fleet import Size
from benchmarks.scale.measure import measure
from tests.fakes.kube_server import running_api_server

SCRIPT: Final = REPOSITORY / "scripts/kube_binaries.py"


def measured(size: Size) -> Scale:
    """One run. Where the API server and etcd are not built yet, they are now: ten minutes, once."""
    subprocess.run([sys.executable, SCRIPT], check=True, stdout=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="cacheagent-scale-") as folder, running_api_server(Path(folder)) as server:
        return asyncio.run(measure(server, size, Path(folder)))
