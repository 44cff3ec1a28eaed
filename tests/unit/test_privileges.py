"""The tests obey file modes, whoever runs them."""

import subprocess
from pathlib import Path

import pytest


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
