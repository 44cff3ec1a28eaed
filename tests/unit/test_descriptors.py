"""How many files and sockets an agent may have open."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

FEW = 64


@pytest.mark.parametrize("allowed", [True, False])
def test_the_agent_and_its_children_may_have_more_than_they_begin_with(*, allowed: bool) -> None:
    """As many as the hard limit says; the control is a process that takes what it is given."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    child = f"files = []\nfor _ in range({2 * FEW}): files.append(open('/dev/null'))"
    agent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}], check=True)"
    if allowed:
        agent = f"from cacheagent.running import allow_descriptors\nallow_descriptors()\n{agent}"
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({FEW}, {most}))\n{agent}"
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is allowed
    assert ("Too many open files" in done.stderr) is not allowed
