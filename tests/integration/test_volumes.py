"""Volumes of a real agent: how a pod gets its model, whatever happens to the agent meanwhile."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheagent.api.schema import MountedPath, MountsReport, Volume, VolumeRequest
from cacheagent.errors import ModelInUse, NotCached
from cacheagent.model import PIECE_SIZE_BYTES
from tests.fakes.origin import Origin
from tests.fakes.running_agent import PATIENCE_S, RunningAgent

SHARD = os.urandom(1024) * (4 * PIECE_SIZE_BYTES // 1024)


@pytest.fixture
def slow_origin() -> Iterator[Origin]:
    """Eight seconds for its one shard: long enough to interrupt it."""
    with Origin({"m/sub/shard.bin": SHARD, "m/config.json": b"{}"}, bytes_per_s=8e6) as made:
        made.add_sums("m")
        yield made


@pytest.fixture
def quick_origin() -> Iterator[Origin]:
    """One small model."""
    with Origin({"m/weights.bin": b"m" * 100_000}) as made:
        made.add_sums("m")
        yield made


def model(origin: Origin, **more: Any) -> dict[str, Any]:
    """The model `m`, as in the file."""
    return {"name": "m", "kind": "tree", "source": f"{origin.url}/m/", **more}


def ask(agent: RunningAgent, volume_id: str = "csi-1", *, wait_s: float = 0.0, **more: Any) -> Volume:
    """What the CSI driver asks."""
    request = VolumeRequest(namespace="team-a", model="m", pod="llm-0", wait_s=wait_s, **more)
    return agent.ask(lambda client: client.volume(volume_id, request))


def progress(agent: RunningAgent, volume_id: str) -> str:
    """The line in a volume that is filled later."""
    path = agent.root / "volumes" / volume_id / ".cacheagent/progress"
    return path.read_text() if path.exists() else ""


def is_ready(agent: RunningAgent, volume_id: str) -> bool:
    """Whether its mark is set."""
    return (agent.root / "volumes" / volume_id / ".cacheagent/ready").exists()


def test_a_volume_waits_with_progress_and_is_ready_with_its_lease(tmp_path: Path, slow_origin: Origin) -> None:
    """The first answer comes at once; a held one comes with the model; the lease is on disk by then and holds it."""
    with RunningAgent(tmp_path, model(slow_origin, keep_warm=False)) as agent:
        first = ask(agent)
        assert (first.state, first.path) == ("waiting", "")
        assert first.message
        agent.wait_until(lambda: "of 67.1 MB" in ask(agent).message)
        ready = ask(agent, wait_s=PATIENCE_S)
        assert ready.state == "ready", ready
        assert (agent.root / ready.path / "sub/shard.bin").read_bytes() == SHARD
        assert json.loads((agent.root / "leases/csi-1").read_bytes())["digest"] == ready.digest
        assert list((agent.root / "promises").iterdir()) == []
        with pytest.raises(ModelInUse):
            agent.ask(lambda client: client.evict("m"))
        assert 'cacheagent_volume_mounts_total{model="m",result="miss"} 1.0' in agent.get("/metrics")[1]
        agent.ask(lambda client: client.remove_volume("csi-1"))
        agent.ask(lambda client: client.remove_volume("csi-1"))
        assert agent.ask(lambda client: client.leases()) == ()
        assert agent.ask(lambda client: client.evict("m")).digest == ready.digest


def test_a_volume_survives_kills_before_and_after_its_lease(tmp_path: Path, slow_origin: Origin) -> None:
    """kill -9 in the download, and between lease and mount: the promise and the lease are found again."""
    agent = RunningAgent(tmp_path, model(slow_origin, keep_warm=False))
    with agent:
        agent.wait_until(lambda: "of 67.1 MB" in ask(agent).message)
        agent.send(signal.SIGKILL)
        agent.wait()
        assert [path.name for path in (agent.root / "promises").iterdir()] == ["csi-1"]
    with agent:
        ready = ask(agent, wait_s=PATIENCE_S)
        assert ready.state == "ready"
        agent.send(signal.SIGKILL)
        agent.wait()
    with agent:
        assert ask(agent) == ready
        mounts = MountsReport(mounts=(MountedPath(volume_id="csi-1", path=ready.path),))
        agent.ask(lambda client: client.mounted(mounts))
        assert [lease.volume_id for lease in agent.ask(lambda client: client.leases())] == ["csi-1"]


def test_an_unknown_model_is_an_error_and_a_known_one_is_not(tmp_path: Path, quick_origin: Origin) -> None:
    """Without a controller nobody can be asked for it."""
    with RunningAgent(tmp_path, model(quick_origin)) as agent:
        assert ask(agent, wait_s=PATIENCE_S).state == "ready"
        with pytest.raises(NotCached, match="no model 'other' is configured"):
            agent.ask(lambda client: client.volume("csi-2", VolumeRequest(namespace="team-a", model="other")))


def test_a_volume_that_is_filled_later_survives_restarts(tmp_path: Path, slow_origin: Origin) -> None:
    """It is ready to be mounted at once, tells how far it is, and is filled through the same inode after a kill."""
    agent = RunningAgent(tmp_path, model(slow_origin, keep_warm=False))
    with agent:
        early = ask(agent, wait="init")
        assert (early.state, early.path) == ("ready", "volumes/csi-1")
        inode = (agent.root / early.path).stat().st_ino
        agent.wait_until(lambda: "of 67.1 MB" in progress(agent, "csi-1"))
        agent.send(signal.SIGKILL)
        agent.wait()
        assert not is_ready(agent, "csi-1")
        assert not (agent.root / "leases/csi-1").exists()
    with agent:
        agent.wait_until(lambda: is_ready(agent, "csi-1"))
        volume = agent.root / early.path
        assert volume.stat().st_ino == inode
        assert (volume / "sub/shard.bin").read_bytes() == SHARD
        assert (volume / "config.json").read_bytes() == b"{}"
        for path in [volume, *volume.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444), path
        digest = json.loads((volume / ".cacheagent/ready").read_bytes())["digest"]
        assert json.loads((agent.root / "leases/csi-1").read_bytes())["digest"] == digest
        agent.wait_until(lambda: not (agent.root / "promises/csi-1").exists())
        again = ask(agent, wait="init")
        assert (again.state, again.path, again.digest) == ("ready", early.path, digest)
        agent.ask(lambda client: client.remove_volume("csi-1"))
        assert not volume.exists()
        assert agent.ask(lambda client: client.evict("m")).freed_bytes >= len(SHARD)


def test_mounts_reconcile_the_leases(tmp_path: Path, quick_origin: Origin) -> None:
    """What is mounted gets its lease; an observed volume that is gone loses it; a fresh grant stays."""
    with RunningAgent(tmp_path, model(quick_origin)) as agent:
        granted = ask(agent, wait_s=PATIENCE_S)
        pod = "pv-0a1b-weights"
        report = MountsReport(
            mounts=(
                MountedPath(volume_id=pod, path=granted.path),
                MountedPath(volume_id="csi-lost", path=granted.path),
                MountedPath(volume_id="csi-other", path="somewhere/else"),
            )
        )

        def leases() -> set[str]:
            return {lease.volume_id for lease in agent.ask(lambda client: client.leases())}

        agent.ask(lambda client: client.mounted(report))
        assert leases() == {"csi-1", "csi-lost", pod}
        agent.ask(lambda client: client.mounted(MountsReport(mounts=())))
        assert leases() == {"csi-1", "csi-lost"}, "they were granted a moment ago"


def test_a_mounted_model_is_read_into_memory_where_it_is_asked_for(tmp_path: Path, quick_origin: Origin) -> None:
    """After the answer; the metrics show how much of it is resident, if the kernel can say."""
    settings = {"page_cache": {"min_memory": "1MiB", "keep_available": "0%"}}
    with RunningAgent(tmp_path, model(quick_origin), **settings) as agent:
        assert ask(agent, wait_s=PATIENCE_S, page_cache=True).state == "ready"

        def reads() -> str:
            lines = agent.get("/metrics")[1].splitlines()
            return " ".join(line for line in lines if line.startswith("cacheagent_page_cache_reads_total"))

        agent.wait_until(lambda: 'result="read"} 1.0' in reads() or 'result="resident"} 1.0' in reads())
        assert ask(agent, "csi-2", wait_s=PATIENCE_S).state == "ready"
        assert 'result="failed"} 0.0' in reads()
