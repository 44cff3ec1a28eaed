"""What a command asks of the disk ahead of its imports is what it imports."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cacheagent.cli import read_ahead

IMPORTS = """
import sys
import cacheagent.cli.root, cacheagent.cli.pull, cacheagent.transfer.worker
from cacheagent.cli.read_ahead import S3
if sys.argv[1] == "s3":
    import cacheagent.source.s3.client, cacheagent.source.s3.connection
    from botocore.session import Session
    Session().create_client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
print(*{module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}, sep="\\n")
"""


def imported(*arguments: str) -> set[Path]:
    """The folders of all modules that a command of this kind has loaded."""
    run = subprocess.run([sys.executable, "-c", IMPORTS, *arguments], check=True, capture_output=True, text=True)
    return {Path(line).parent for line in run.stdout.splitlines()}


@pytest.mark.parametrize(("kind", "folders"), [("any", read_ahead.COMMANDS), ("s3", read_ahead.S3)])
def test_every_folder_is_one_that_is_imported(kind: str, folders: tuple[str, ...]) -> None:
    """A package that is no longer used, or has moved, would be read for nothing."""
    loaded = imported(kind)
    for folder in folders:
        assert any(path.as_posix().endswith(f"/{folder}") for path in loaded), folder


def test_it_opens_what_is_there_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's packages only where the command names an object in it; what is missing stops nobody."""
    opened: list[str] = []
    really_open = os.open

    def note(path: str, flags: int) -> int:
        opened.append(path)
        return really_open(path, flags)

    for package in ("first_of_all", "only_for_s3"):
        compiled = tmp_path / package / "inner" / "__pycache__"
        compiled.mkdir(parents=True)
        (compiled / "module.pyc").write_bytes(b"code")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(read_ahead, "COMMANDS", ("first_of_all/inner", "no_such_package"))
    monkeypatch.setattr(read_ahead, "S3", ("only_for_s3/inner",))
    monkeypatch.setattr(os, "open", note)
    for arguments, expected in (
        (["pull", "file:///x"], {"first_of_all"}),
        (["pull", "s3://b/x"], {"first_of_all", "only_for_s3"}),
    ):
        opened.clear()
        read_ahead.read_ahead(arguments)
        for thread in threading.enumerate():
            if thread.name == "read ahead":
                thread.join()
        assert {Path(path).parts[-4] for path in opened} == expected
