"""The command line as a person and a pipeline meet it: what is printed, where, and the exit code."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.cli import LIMIT_S, Cli
from tests.fakes.models import checkpoint, write_files
from tests.fakes.origin import Origin
from tests.fakes.pace import Pace

COMMANDS = ("pull", "ls", "status", "verify", "pin", "unpin", "evict", "agent", "demo")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "cache")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "tiny-llama"
    write_files(directory, checkpoint())
    return directory


def test_pull_prints_where_the_model_is_and_the_second_time_is_a_hit(cli: Cli, model: Path) -> None:
    """Standard output is the path alone; what happened is on standard error; the bytes are equal."""
    first = cli.run("pull", f"file://{model}")
    assert first.returncode == 0, first.stderr
    tree = Path(first.stdout.strip())
    assert {path.name: path.read_bytes() for path in tree.iterdir()} == checkpoint()
    assert re.search(r"tiny-llama: ready in .*: 4\.\d+ MB fetched", first.stderr)
    again = cli.run("pull", f"file://{model}")
    assert again.stdout == first.stdout
    assert "already here" in again.stderr


def test_pull_tells_machines_each_step(cli: Cli, model: Path) -> None:
    """One JSON value a line, the last one final, with digest and path."""
    *steps, last = cli.json("pull", f"file://{model}")
    assert steps[0]["phase"] == "resolving"
    assert last["phase"] == "ready"
    assert last["digest"].startswith("sha256:")
    assert Path(last["path"]).is_dir()
    assert last["bytes_fetched"] == last["bytes_total"] > 4_000_000


def test_the_life_of_a_model_by_commands(cli: Cli, model: Path) -> None:
    """Listed, shown, verified, pinned (and then it stays), unpinned, evicted (and then it is gone)."""
    cli.run("pull", f"file://{model}", "--repo-id", "acme/tiny")
    listed = cli.run("ls")
    header, row = (line.split("\t") for line in listed.stdout.splitlines())
    assert header[0] == "NAME"
    assert (row[0], row[-1]) == ("tiny-llama", f"file://{model}")
    ((listed_model,),) = cli.json("ls")
    prefix = listed_model["digest"].removeprefix("sha256:")[:12]

    shown = cli.run("status", prefix)
    assert f"digest    {listed_model['digest']}" in shown.stdout
    assert "HF_HUB_CACHE=" in shown.stdout
    assert "1 models" in cli.run("status").stdout
    assert cli.json("verify", "tiny-llama")[0]["verified"] is True

    assert "pinned: it stays" in cli.run("pin", "tiny-llama").stdout
    refused = cli.run("evict", "tiny-llama")
    assert refused.returncode == 1
    assert "pinned" in refused.stderr
    assert cli.json("ls")[0][0]["pin"] is True

    assert "unpinned" in cli.run("unpin", "tiny-llama").stdout
    assert re.fullmatch(r"tiny-llama: evicted, 4\.\d+ MB freed\n", cli.run("evict", "tiny-llama").stdout)
    assert cli.json("ls") == [[]]
    gone = cli.run("status", "tiny-llama")
    assert gone.returncode == 1
    assert "no model 'tiny-llama' is in this cache" in gone.stderr
    assert "next: `cacheagent ls`" in gone.stderr


def test_verify_names_the_file_that_differs(cli: Cli, model: Path) -> None:
    """Exit code 1, the file and the piece; the sound model passed before."""
    tree = Path(cli.run("pull", f"file://{model}").stdout.strip())
    assert cli.run("verify", "tiny-llama").returncode == 0
    shard = tree / "model-00002-of-00003.safetensors"
    shard.chmod(0o644)
    with shard.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\xff\x00\xff")
    ended = cli.run("verify", "tiny-llama")
    assert ended.returncode == 1
    assert "model-00002-of-00003.safetensors piece 0" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["pull"], 2, "Missing argument 'URI'"),
        (["pull", "gopher://x/y"], 2, "'gopher' is no kind of source"),
        (["pull", "s3://b/m", "--ingress-cap", "fast"], 2, "expected a rate such as 200MB/s"),
        (["pull", "file:///nonexistent/model"], 1, "/nonexistent/model"),
        (["pull", "file:///"], 2, "--name"),
        (["status", "nothing"], 1, "there is no cache at"),
        (["nonsense"], 2, "No such command 'nonsense'"),
    ],
)
def test_a_mistake_is_a_sentence_and_an_exit_code(cli: Cli, arguments: list[str], code: int, sentence: str) -> None:
    """Never a traceback; usage is 2, what failed is 1."""
    ended = cli.run(*arguments) if arguments != ["nonsense"] else _bare("nonsense")
    assert ended.returncode == code
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_what_policy_refuses_has_its_own_exit_code(cli: Cli, tmp_path: Path) -> None:
    """Pickle is refused with 4 and fetched when it is allowed."""
    write_files(tmp_path / "old", {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    refused = cli.run("pull", f"file://{tmp_path / 'old'}")
    assert refused.returncode == 4
    assert "has only pickle weights (.bin)" in refused.stderr
    assert "next: convert them" in refused.stderr
    assert cli.run("pull", f"file://{tmp_path / 'old'}", "--allow-pickle").returncode == 0


def test_a_pull_that_outlasts_its_limit_ends_with_3_and_can_be_taken_up(cli: Cli) -> None:
    """The origin is too slow for the limit; without the limit the same command finishes."""
    with Origin({"m/model.gguf": bytes(3_000_000)}, bytes_per_s=200_000) as origin:
        origin.add_sums("m")
        url = f"http://127.0.0.1:{origin.port}/m/"
        ended = cli.run("pull", url, "--timeout", "2")
        assert ended.returncode == 3
        assert "m: not there after 2 s" in ended.stderr
        assert cli.json("ls") == [[]]
        origin.pace = Pace(None)
        assert cli.run("pull", url).returncode == 0


def test_ctrl_c_ends_with_130_and_leaves_a_cache_that_works(cli: Cli) -> None:
    """Interrupted in mid-transfer; the next command needs nobody."""
    with Origin({"m/model.gguf": bytes(3_000_000)}, bytes_per_s=200_000) as origin:
        origin.add_sums("m")
        url = f"http://127.0.0.1:{origin.port}/m/"
        with subprocess.Popen(cli.arguments("pull", url), stderr=subprocess.PIPE, text=True) as pull:
            deadline = time.monotonic() + LIMIT_S
            while not origin.body_bytes_sent("m/model.gguf"):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            pull.send_signal(signal.SIGINT)
            _, stderr = pull.communicate(timeout=LIMIT_S)
        assert pull.returncode == 130
        assert "interrupted; what was proved is kept" in stderr
        assert "Traceback" not in stderr
        origin.pace = Pace(None)
        assert cli.run("pull", url).returncode == 0


def test_a_terminal_sees_a_bar(cli: Cli) -> None:
    """On a terminal the progress moves, with rate and time left; at the end one line says what happened."""
    files = {f"m/{number}.gguf": bytes(1_500_000) for number in range(6)}
    with Origin(files, bytes_per_s=3_000_000) as origin:
        origin.add_sums("m")
        leader, follower = pty.openpty()
        with subprocess.Popen(
            cli.arguments("pull", f"{origin.url}/m/", "--connections", "2"),
            stdout=follower,
            stderr=follower,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "140"},
        ) as pull:
            os.close(follower)
            shown = b""
            while chunk := _read(leader):
                shown += chunk
            assert pull.wait(LIMIT_S) == 0
        os.close(leader)
    assert b"\x1b[?25l" in shown  # the cursor is hidden while the bar moves
    moved = re.findall(rb"(\d+)%, [\d.]+ MB of 9 MB, [\d.]+ [KM]B/s, about [\d.]+ s left", shown)
    assert len(set(moved)) >= 2, shown
    assert b"m: ready in" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches(command: str) -> None:
    """--help explains, and shows an example of itself."""
    ended = _bare(command, "--help")
    assert ended.returncode == 0
    assert f"Usage: cacheagent {command} " in ended.stdout
    _, _, examples = ended.stdout.partition("Example")
    assert f"  cacheagent {command}" in examples


def _bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cacheagent", *arguments], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # the other side is closed: that is how a terminal ends
        return b""
