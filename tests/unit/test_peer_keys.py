"""A node's key and what a member list says of it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from click.testing import CliRunner

from cacheagent.cli.root import cli
from cacheagent.errors import StoreError
from cacheagent.member import Member
from cacheagent.peers.keys import is_signed, load_or_make_key


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    """The command prints the public half of what the agent signs with; nothing prints the private one."""
    printed = CliRunner().invoke(cli, ["peers", "key", "--cache", str(tmp_path / "cache")]).output.strip()
    key = load_or_make_key(tmp_path / "cache")
    assert key.public_text == printed == load_or_make_key(tmp_path / "cache").public_text
    path = tmp_path / "cache" / "node.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert base64.b64encode(key.seed).decode() not in f"{key!r} {key}"


def test_signatures_hold_for_one_message_and_one_key(tmp_path: Path) -> None:
    """Another message, another key and a cut signature don't agree; a second key of a member does."""
    mine, other = load_or_make_key(tmp_path / "a"), load_or_make_key(tmp_path / "b")
    signature = mine.sign(b"message")
    assert is_signed(b"message", signature, (mine.public,))
    assert is_signed(b"message", signature, (other.public, mine.public))
    assert not is_signed(b"messagf", signature, (mine.public,))
    assert not is_signed(b"message", signature, (other.public,))
    assert not is_signed(b"message", signature[:-1], (mine.public,))


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    """It is not silently replaced: others know the old public half."""
    (tmp_path / "node.key").write_text("c2hvcnQ=\n")
    with pytest.raises(StoreError, match="holds no key"):
        load_or_make_key(tmp_path)
    assert (tmp_path / "node.key").read_text() == "c2hvcnQ=\n"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "", "name"),
        ("address", "10.0.0.1", "address"),
        ("address", "10.0.0.1:0", "address"),
        ("key", "not base64!", "base64"),
        ("key", "AAAA", "32 bytes"),
    ],
)
def test_members_are_judged(field: str, value: str, said: str) -> None:
    """What is wrong is named; the same with right values is taken, also with two keys."""
    right = {"name": "n1", "address": "[::1]:7411", "key": "A" * 43 + "="}
    assert Member(**{**right, "key": f"{right['key']},{right['key']}"}).keys == (bytes(32), bytes(32))
    assert (Member(**right).host, Member(**right).port) == ("::1", 7411)
    with pytest.raises(ValueError, match=said):
        Member(**{**right, field: value})
