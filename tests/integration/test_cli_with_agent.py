"""The same commands beside a running agent: it does the work, they watch, and nothing depends on their staying."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.progress import JobStatus
from tests.fakes.cli import LIMIT_S, Cli
from tests.fakes.models import write_files
from tests.fakes.origin import Origin
from tests.fakes.pace import Pace
from tests.fakes.running_agent import RunningAgent

SHARD = os.urandom(1024) * (3 * PIECE_SIZE_BYTES // 1024)
FILES = {"model.gguf": SHARD, "config.json": b"{}"}
SLOW_BYTES_PER_S = 8e6
"""Six seconds for the model: long enough to interrupt who watches, whatever the machine."""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[RunningAgent]:
    with RunningAgent(tmp_path) as running:
        yield running


@pytest.fixture
def cli(agent: RunningAgent) -> Cli:
    return Cli(agent.root)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({f"m/{path}": content for path, content in FILES.items()}) as server:
        server.add_sums("m")
        yield server


def job(agent: RunningAgent) -> JobStatus:
    """The only one."""
    (status,) = agent.status().jobs
    return status


def _told(stderr: str) -> list[str]:
    """What is said of a failure, without the progress before it."""
    return [line for line in stderr.splitlines() if line.startswith(("cacheagent: ", "  next: "))]


def tree_of(path: str) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in Path(path.strip()).iterdir()}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_agent_pulls_and_the_command_watches(cli: Cli, agent: RunningAgent, origin: Origin) -> None:
    """Each step of the agent's job is told; the bytes are the origin's; a second time nothing travels."""
    origin.pace = Pace(SLOW_BYTES_PER_S)
    *steps, last = cli.json("pull", f"{origin.url}/m/")
    assert {"resolving", "fetching"} <= {step["phase"] for step in steps}
    assert any(0 < step["bytes_fetched"] < len(SHARD) and step["rate_bytes_per_s"] > 0 for step in steps)
    assert (last["phase"], last["bytes_fetched"]) == ("ready", len(SHARD) + 2)
    assert (job(agent).digest, job(agent).path) == (last["digest"], last["path"])
    assert tree_of(f"{last['path']}/files") == FILES

    again = cli.run("pull", f"{origin.url}/m/")
    assert again.returncode == 0
    assert again.stdout == f"{last['path']}/files\n"
    assert re.search(r"^m: ready in ", again.stderr, re.MULTILINE)
    assert origin.body_bytes_sent("m/model.gguf") == len(SHARD)


def test_who_stops_watching_stops_nothing(cli: Cli, agent: RunningAgent, origin: Origin) -> None:
    """Neither Ctrl-C (130) nor the command's own time limit (3): the agent brings the model, each byte once."""
    origin.pace = Pace(SLOW_BYTES_PER_S)
    url = f"{origin.url}/m/"
    with subprocess.Popen(cli.arguments("pull", url), stderr=subprocess.PIPE, text=True) as pull:
        wait_until(lambda: origin.body_bytes_sent("m/model.gguf") > 0)
        pull.send_signal(signal.SIGINT)
        _, said = pull.communicate(timeout=LIMIT_S)
    assert pull.returncode == 130
    assert "interrupted" in said
    ended = cli.run("pull", url, "--timeout", "0.5")
    assert ended.returncode == 3
    assert "m: not there after 0.5 s" in ended.stderr
    assert "Traceback" not in said + ended.stderr
    agent.wait_until(lambda: job(agent).phase == "ready")
    assert tree_of(f"{job(agent).path}/files") == FILES
    assert origin.body_bytes_sent("m/model.gguf") == len(SHARD)


def test_what_fails_at_the_agent_fails_as_it_does_without_one(cli: Cli, origin: Origin, tmp_path: Path) -> None:
    """Exit code, sentence and next step are the same; what is allowed, or there, comes."""
    write_files(tmp_path / "old", {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    alone = Cli(tmp_path / "alone")
    for uri, code, sentence in (
        (f"file://{tmp_path / 'old'}", 4, "has only pickle weights (.bin)"),
        (f"{origin.url}/nothing/", 1, "/nothing/"),
    ):
        said = [each.run("pull", uri) for each in (cli, alone)]
        assert [each.returncode for each in said] == [code, code]
        told = [
            [line for line in each.stderr.splitlines() if line.startswith(("cacheagent: ", "  next: "))]
            for each in said
        ]
        assert told[0] == told[1]
        assert len(told[0]) == 2
        assert sentence in told[0][0]
    assert cli.run("pull", f"file://{tmp_path / 'old'}", "--allow-pickle").returncode == 0
    assert cli.run("pull", f"{origin.url}/m/").returncode == 0


def test_the_life_of_a_model_by_commands_that_the_agent_answers(cli: Cli, agent: RunningAgent, origin: Origin) -> None:
    """Listed, shown, verified, pinned (and then it stays), unpinned, evicted; the agent owns the directory."""
    cli.run("pull", f"{origin.url}/m/")
    ((listed,),) = cli.json("ls")
    assert listed["name"] == "m"
    assert cli.json("status", "m")[0]["digest"] == listed["digest"]
    assert cli.json("status")[0]["jobs"][0]["name"] == "m", "only an agent remembers its jobs"
    assert cli.json("verify", "m")[0]["verified"] is True
    assert "pinned: it stays" in cli.run("pin", "m").stdout
    assert agent.ask(lambda client: client.model("m")).pin
    refused = cli.run("evict", "m")
    assert refused.returncode == 1
    assert "pinned" in refused.stderr
    assert "unpinned" in cli.run("unpin", "m").stdout
    assert re.fullmatch(r"m: evicted, 50\.\d MB freed\n", cli.run("evict", "m").stdout)
    assert agent.status().models == ()
    assert list((agent.root / "models").iterdir()) == []


def test_an_agent_that_dies_is_told_of_and_its_work_is_taken_up(cli: Cli, agent: RunningAgent, origin: Origin) -> None:
    """Exit code 1 and one sentence; the same command without an agent goes on from what was proved."""
    origin.pace = Pace(SLOW_BYTES_PER_S)
    url = f"{origin.url}/m/"
    with subprocess.Popen(cli.arguments("pull", url), stderr=subprocess.PIPE, text=True) as pull:
        agent.wait_until(lambda: bool(agent.status().jobs) and job(agent).bytes_fetched >= PIECE_SIZE_BYTES)
        agent.send(signal.SIGKILL)
        _, said = pull.communicate(timeout=LIMIT_S)
    assert pull.returncode == 1
    assert f"cacheagent: no agent answers on {agent.root / 'agent.sock'}" in said
    assert "  next: start one with `cacheagent agent" in said
    assert "Traceback" not in said
    agent.wait()
    assert list((agent.root / "models").iterdir()) == []
    origin.pace = Pace(None)
    *_, last = cli.json("pull", url)
    assert last["bytes_kept"] >= PIECE_SIZE_BYTES
    assert last["bytes_kept"] + last["bytes_fetched"] == len(SHARD) + 2
    assert tree_of(f"{last['path']}/files") == FILES
