"""The agent as a process: what it brings by itself, how it is told things, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheagent.agent import STOP_WITHIN_S
from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.progress import JobStatus
from tests.fakes.origin import Origin
from tests.fakes.pace import Pace
from tests.fakes.running_agent import PATIENCE_S, RunningAgent, launch

PIECES = 6
SHARD = os.urandom(1024) * (PIECES * PIECE_SIZE_BYTES // 1024)


@pytest.fixture
def slow_origin() -> Iterator[Origin]:
    """A server that takes a dozen seconds for its one shard: long enough to interrupt it, whatever the machine."""
    with Origin({"m/shard.bin": SHARD, "m/config.json": b"{}"}, bytes_per_s=8e6) as made:
        made.add_sums("m")
        yield made


@pytest.fixture
def quick_origin() -> Iterator[Origin]:
    """Three small models."""
    with Origin({f"{name}/weights.bin": name.encode() * 100_000 for name in ("one", "two", "three")}) as made:
        for name in ("one", "two", "three"):
            made.add_sums(name)
        yield made


def model(origin: Origin, name: str, **more: Any) -> dict[str, Any]:
    """A configured model, as in the file."""
    return {"name": name, "kind": "tree", "source": f"{origin.url}/{name}/", **more}


def job(agent: RunningAgent, name: str) -> JobStatus | None:
    """How far it is."""
    return next((status for status in agent.status().jobs if status.name == name), None)


def test_configured_models_come_and_everything_is_told(tmp_path: Path, quick_origin: Origin) -> None:
    """Brought without being asked for, byte by byte; probes, metrics, log and status agree; nothing else came."""
    quiet = model(quick_origin, "three", keep_warm=False)
    with RunningAgent(tmp_path, model(quick_origin, "one", priority=1), model(quick_origin, "two"), quiet) as agent:
        agent.wait_until_ready("one")
        agent.wait_until_ready("two")
        path = Path(agent.ask(lambda client: client.model("one")).path)
        assert (path / "files/weights.bin").read_bytes() == b"one" * 100_000
        assert [(wanted.name, wanted.state) for wanted in agent.status().wanted] == [
            ("one", "ready"),
            ("two", "ready"),
            ("three", "on-demand"),
        ]
        assert agent.get("/healthz")[0] == agent.get("/readyz")[0] == 200
        assert agent.get("/v1/status")[0] == 404, "the port serves probes and nothing else"
        metrics = agent.get("/metrics")[1]
        assert 'cacheagent_model_ready{model="one"} 1.0' in metrics
        assert 'cacheagent_model_ready{model="three"} 0.0' in metrics
        assert 'cacheagent_jobs_total{result="ready",source="https"} 2.0' in metrics
        assert {event["model"] for event in agent.events() if event.get("phase") == "ready"} == {"one", "two"}
        agent.ask(lambda client: client.ensure("three", wait_s=PATIENCE_S))
        assert (agent.ask(lambda client: client.ensure("three"))).phase == "ready"
        assert 'cacheagent_ensure_requests_total{model="three",result="hit"} 1.0' in agent.get("/metrics")[1]
        agent.send(signal.SIGTERM)
        assert agent.wait() == 0
    assert agent.events("stopped")[0]["by"] == "SIGTERM"
    assert not (agent.root / "agent.sock").exists()


def test_sigterm_in_mid_download_keeps_what_is_proved(tmp_path: Path, slow_origin: Origin) -> None:
    """It ends in its own time limit, by itself; the next start fetches only what was missing."""
    agent = RunningAgent(tmp_path, model(slow_origin, "m"))
    with agent:
        agent.wait_until(lambda: (now := job(agent, "m")) is not None and now.bytes_fetched > 2 * PIECE_SIZE_BYTES)
        agent.send(signal.SIGTERM)
        assert agent.wait() == 0
        assert agent.events("stopped")
        assert STOP_WITHIN_S < 5
        assert not agent.events("ended at once"), "it had to be ended by its own watchdog"
        assert list((agent.root / "models").iterdir()) == []
    with agent:
        agent.wait_until_ready("m")
        again = job(agent, "m")
        assert again is not None
        assert again.bytes_kept >= 2 * PIECE_SIZE_BYTES
        assert again.bytes_kept + again.bytes_fetched == len(SHARD) + 2
        path = Path(agent.ask(lambda client: client.model("m")).path)
        assert (path / "files/shard.bin").read_bytes() == SHARD


def test_kill_in_mid_download_needs_no_human(tmp_path: Path, slow_origin: Origin) -> None:
    """kill -9 leaves a lock, a socket and half a file; the next start takes all three over."""
    agent = RunningAgent(tmp_path, model(slow_origin, "m"))
    with agent:
        agent.wait_until(lambda: (now := job(agent, "m")) is not None and now.bytes_fetched > 2 * PIECE_SIZE_BYTES)
        agent.send(signal.SIGKILL)
        assert agent.wait() == -signal.SIGKILL
        assert (agent.root / "agent.sock").exists()
    with agent:
        agent.wait_until_ready("m")
        again = job(agent, "m")
        assert again is not None
        assert again.bytes_kept > 0
        path = Path(agent.ask(lambda client: client.model("m")).path)
        assert (path / "files/shard.bin").read_bytes() == SHARD


def test_sighup_puts_a_changed_file_into_force(tmp_path: Path, quick_origin: Origin) -> None:
    """New models come, removed ones stay on disk, unwanted; a wrong file changes nothing and is told of."""
    with RunningAgent(tmp_path, model(quick_origin, "one")) as agent:
        agent.wait_until_ready("one")
        agent.configure(model(quick_origin, "two"))
        agent.send(signal.SIGHUP)
        agent.wait_until(lambda: [wanted.name for wanted in agent.status().wanted] == ["two"])
        agent.wait_until_ready("two")
        assert {known.name for known in agent.status().models} == {"one", "two"}
        (event,) = agent.events("the configuration is read again")
        assert (event["new_or_changed"], event["removed"]) == (["two"], ["one"])

        agent.config.write_text("root: cache\nmodles: []\n")
        agent.send(signal.SIGHUP)
        agent.wait_until(lambda: agent.status().config_error != "")
        status = agent.status()
        assert f"{agent.config}, line 2: object contains unknown field `modles`" in status.config_error
        assert [wanted.name for wanted in status.wanted] == ["two"]
        assert agent.events("the configuration is not changed")
        assert 'cacheagent_config_reloads_total{result="refused"} 1.0' in agent.get("/metrics")[1]

        agent.configure(model(quick_origin, "two", pin=True), model(quick_origin, "three"))
        agent.send(signal.SIGHUP)
        agent.wait_until_ready("three")
        assert agent.status().config_error == ""
        agent.wait_until(lambda: agent.ask(lambda client: client.model("two")).pin)


def test_a_failed_model_says_why_and_comes_when_it_can(tmp_path: Path, quick_origin: Origin) -> None:
    """The reason is in the status; SIGHUP tries again at once, and the others were not held up."""
    with RunningAgent(tmp_path, model(quick_origin, "late"), model(quick_origin, "one")) as agent:
        agent.wait_until_ready("one")
        agent.wait_until(lambda: agent.status().wanted[0].state == "failed")
        late = agent.status().wanted[0]
        assert late.error == "not-found"
        assert late.message
        assert late.hint
        quick_origin.put("late/weights.bin", b"late")
        quick_origin.add_sums("late")
        agent.send(signal.SIGHUP)
        agent.wait_until_ready("late")


def test_bytes_that_rot_are_mended_from_the_origin(tmp_path: Path, slow_origin: Origin) -> None:
    """Found by the scrub, fetched again as one piece, restored in the file that is published."""
    slow_origin.pace = Pace(None)
    agent = RunningAgent(tmp_path, model(slow_origin, "m"), store={"floor": "64MiB", "scrub_period": "1s"})
    with agent:
        agent.wait_until_ready("m")
        path = Path(agent.ask(lambda client: client.model("m")).path) / "files/shard.bin"
        sent = slow_origin.body_bytes_sent("m/shard.bin")
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(2 * PIECE_SIZE_BYTES + 100)
        file.write(b"rot")
    path.chmod(0o444)
    inode = path.stat().st_ino
    with agent:
        agent.wait_until(lambda: bool(agent.events("bytes at rest were repaired")))
        assert path.read_bytes() == SHARD
        assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o444)
        assert slow_origin.body_bytes_sent("m/shard.bin") - sent == PIECE_SIZE_BYTES
        agent.wait_until(lambda: not agent.ask(lambda client: client.model("m")).suspect)
        assert agent.ask(lambda client: client.verify("m")).digest
        metrics = agent.get("/metrics")[1]
        assert 'cacheagent_scrub_bad_pieces_total{result="found"} 1.0' in metrics
        assert 'cacheagent_scrub_bad_pieces_total{result="repaired"} 1.0' in metrics
        assert not list(agent.root.glob(".repair-*"))


def test_one_directory_has_one_agent(tmp_path: Path, quick_origin: Origin) -> None:
    """The second says who has it, ends with 1, and harms nothing; after the first it would be served."""
    with RunningAgent(tmp_path, model(quick_origin, "one")) as agent:
        agent.wait_until_ready("one")
        log = tmp_path / "second.log"
        second = launch(agent.config, log)
        assert second.wait(PATIENCE_S) == 1
        said = log.read_text()
        assert f"{agent.root} is in use by process {agent.process.pid}" in said
        assert "Traceback" not in said
        assert agent.status().models[0].name == "one"
        agent.send(signal.SIGTERM)
        assert agent.wait() == 0
    with agent:
        assert agent.status().models[0].name == "one"


def test_a_wrong_file_is_a_usage_error(tmp_path: Path) -> None:
    """Exit code 2 and one sentence; no directory was made."""
    config = tmp_path / "models.yaml"
    config.write_text("root: cache\nstore:\n  floor: much\n")
    log = tmp_path / "log"
    assert launch(config, log).wait(PATIENCE_S) == 2
    assert "line 3, store.floor: expected a size such as 10GiB or 500MB, got 'much'" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "cache").exists()


def test_interrupted_from_the_keyboard(tmp_path: Path) -> None:
    """SIGINT ends it as SIGTERM does, with the exit code that shells know."""
    with RunningAgent(tmp_path) as agent:
        agent.send(signal.SIGINT)
        assert agent.wait() == 130
    assert agent.events("stopped")[0]["by"] == "SIGINT"


def test_what_does_not_stop_in_time_is_ended(tmp_path: Path) -> None:
    """A thread that hangs (a disk that doesn't answer) does not keep the process beyond its promise."""
    program = textwrap.dedent(
        """
        import asyncio, os, signal, threading
        from cacheagent import running
        from cacheagent.config import LogSettings
        from cacheagent.logs import start_logging

        start_logging(LogSettings())

        async def main():
            orders = running.Orders(stop_within_s=0.2)
            with orders.from_signals():
                os.kill(os.getpid(), signal.SIGTERM)
                await orders.stop.wait()
                await asyncio.to_thread(threading.Event().wait)

        asyncio.run(main())
        """
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 1
    messages = [json.loads(line)["message"] for line in ended.stderr.splitlines()]
    assert messages == ["stopping", "ended at once: something did not stop in time; what was proved is on disk"]
