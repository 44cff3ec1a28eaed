"""The tests obey file modes, whoever runs them."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.privileges import as_root, as_root_for_long


def test_a_read_only_file_is_not_written_by_us_or_by_what_we_start(tmp_path: Path) -> None:
    """The mode refuses it, and lifting the mode allows it."""
    file = tmp_path / "sealed"
    file.write_text("before")
    file.chmod(0o444)
    with pytest.raises(PermissionError):
        file.write_text("after")
    write = ["sh", "-c", f"echo after > {file}"]
    assert subprocess.run(write, check=False, capture_output=True).returncode != 0
    assert file.read_text() == "before"

    file.chmod(0o644)
    subprocess.run(write, check=True)
    assert file.read_text() == "after\n"


def test_one_thread_keeps_roots_rights_for_whoever_asks_it(tmp_path: Path) -> None:
    """It writes what we may not, its children do, and what it raises comes to us."""
    if os.geteuid() != 0:
        missing("root", "nobody else has rights to keep")
    file = tmp_path / "sealed"
    file.write_text("before")
    file.chmod(0o444)
    with pytest.raises(PermissionError):
        file.write_text("after")
    as_root(lambda: file.write_text("by the thread"))
    assert file.read_text() == "by the thread"
    as_root_for_long(lambda: subprocess.run(["sh", "-c", f"echo child > {file}"], check=True))
    assert file.read_text() == "child\n"
    with pytest.raises(ZeroDivisionError):
        as_root(lambda: 1 // 0)
