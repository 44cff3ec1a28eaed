"""A node's key and what a member list says of it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from click.testing import CliRunner

from cacheagent.cli.root import cli
from cacheagent.errors import StoreError
from cacheagent.member import Member, keys_of
from cacheagent.peers import keys
from cacheagent.peers.keys import NodeKey, is_signed, load_or_make_keys


def test_the_keys_are_made_once_and_are_their_owners_alone(tmp_path: Path) -> None:
    """The command prints the public halves of what the agent signs with now and will sign with; nothing prints the
    private ones."""
    printed = CliRunner().invoke(cli, ["peers", "key", "--cache", str(tmp_path / "cache")]).output.strip()
    made = load_or_make_keys(tmp_path / "cache")
    assert made.public_text == printed == load_or_make_keys(tmp_path / "cache").public_text
    assert keys_of("n1", printed) == (made.current.public, made.next.public)
    assert made.current.public != made.next.public
    for name, key in (("node.key", made.current), ("node.key.next", made.next)):
        path = tmp_path / "cache" / name
        assert path.stat().st_mode & 0o777 == 0o600
        assert base64.b64decode(path.read_bytes()) == key.seed
        assert base64.b64encode(key.seed).decode() not in f"{made!r} {made}"


def test_a_node_that_has_one_key_keeps_it_and_gets_a_next_one(tmp_path: Path) -> None:
    """As an agent of before has left it, or a first start that was killed between the two."""
    before = load_or_make_keys(tmp_path)
    (tmp_path / "node.key.next").unlink()
    after = load_or_make_keys(tmp_path)
    assert after.current.seed == before.current.seed
    assert after.next.seed != before.next.seed
    assert (tmp_path / "node.key.next").stat().st_mode & 0o777 == 0o600


def test_the_next_key_takes_the_place_of_one_that_is_gone(tmp_path: Path) -> None:
    """With another one behind it, every time."""
    before = load_or_make_keys(tmp_path)
    for _ in range(2):
        (tmp_path / "node.key").unlink()
        after = load_or_make_keys(tmp_path)
        assert after.current.seed == before.next.seed
        assert after.next.seed not in {before.current.seed, before.next.seed}
        assert load_or_make_keys(tmp_path).public_text == after.public_text
        for name in ("node.key", "node.key.next"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        before = after


@pytest.mark.parametrize("done", [False, True], ids=["before the rename is durable", "before there is a next one"])
def test_a_change_of_keys_that_a_crash_ends_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, done: bool
) -> None:
    """The key that others know is the current one whenever it comes."""
    before = load_or_make_keys(tmp_path)
    (tmp_path / "node.key").unlink()

    def crash(*_args: object, **_more: object) -> None:
        if not done:
            (tmp_path / "node.key").rename(tmp_path / "node.key.next")  # as the disk has it after a power cut
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(keys, "write_whole" if done else "sync_directory", crash)
        with pytest.raises(KeyboardInterrupt):
            load_or_make_keys(tmp_path)
    after = load_or_make_keys(tmp_path)
    assert after.current.seed == before.next.seed
    assert after.next.seed not in {before.current.seed, before.next.seed}


def test_without_both_files_both_keys_are_new(tmp_path: Path) -> None:
    """For keys that somebody may have stolen."""
    before = load_or_make_keys(tmp_path)
    (tmp_path / "node.key").unlink()
    (tmp_path / "node.key.next").unlink()
    after = load_or_make_keys(tmp_path)
    assert not {after.current.seed, after.next.seed} & {before.current.seed, before.next.seed}


def test_what_a_crash_left_of_a_next_key_is_none(tmp_path: Path) -> None:
    """A file is there under its name when it is whole."""
    before = load_or_make_keys(tmp_path)
    (tmp_path / "node.key.next").unlink()
    (tmp_path / ".node.key.next.tmp").write_bytes(b"c2hv")
    (tmp_path / "node.key").unlink()
    after = load_or_make_keys(tmp_path)
    assert not {after.current.seed, after.next.seed} & {before.current.seed, before.next.seed}
    assert {path.name for path in tmp_path.iterdir()} == {"node.key", "node.key.next"}


def test_signatures_hold_for_one_message_and_one_key() -> None:
    """Another message, another key and a cut signature don't agree; a second key of a member does."""
    mine, other = NodeKey(b"1" * 32), NodeKey(b"2" * 32)
    signature = mine.sign(b"message")
    assert is_signed(b"message", signature, (mine.public,))
    assert is_signed(b"message", signature, (other.public, mine.public))
    assert not is_signed(b"messagf", signature, (mine.public,))
    assert not is_signed(b"message", signature, (other.public,))
    assert not is_signed(b"message", signature[:-1], (mine.public,))


@pytest.mark.parametrize("current", [True, False], ids=["with a current one", "without"])
@pytest.mark.parametrize("name", ["node.key", "node.key.next"])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, name: str, *, current: bool) -> None:
    """It is not silently replaced, and takes no other's place: others know the old public half."""
    load_or_make_keys(tmp_path)
    if not current:
        (tmp_path / "node.key").unlink()
    (tmp_path / name).write_text("c2hvcnQ=\n")
    with pytest.raises(StoreError, match=f"{name} holds no key"):
        load_or_make_keys(tmp_path)
    assert (tmp_path / name).read_text() == "c2hvcnQ=\n"
    assert (tmp_path / "node.key").exists() is (current or name == "node.key")


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
