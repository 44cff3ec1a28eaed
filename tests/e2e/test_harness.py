"""The parts of the harness that need no cluster."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from tests.e2e.cluster.archive import pause_program, true_program
from tests.e2e.cluster.mounts import parse_mountinfo
from tests.e2e.cluster.node_config import kubelet
from tests.e2e.cluster.slot import SLOTS, Slot
from tests.e2e.cluster.waiting import NotSeen, wait_until


def test_waiting_returns_the_first_true_answer_and_forgives_errors_until_then() -> None:
    """Things come and go in a cluster."""
    answers: list[object] = [OSError("not there"), "", "here"]

    def condition() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert wait_until(condition, "something comes", 10, pause=0) == "here"


def test_waiting_says_what_it_saw_last() -> None:
    """The message is all that a failed run shows."""
    counter = itertools.count(1)
    with pytest.raises(NotSeen, match=r"three pods run: not within 0 s. Last seen: \[\]"):
        wait_until(lambda: [] if next(counter) else None, "three pods run", 0)
    with pytest.raises(NotSeen, match="Last seen: OSError: refused"):
        wait_until(lambda: (_ for _ in ()).throw(OSError("refused")), "it answers", 0)


def test_a_mistake_in_a_condition_is_not_waited_for() -> None:
    """A typing error would else take its whole limit to show."""
    with pytest.raises(AttributeError):
        wait_until(lambda: None.nothing, "never", 60)  # type: ignore[attr-defined]


def test_mountinfo_is_read_as_the_kernel_writes_it() -> None:
    """Optional fields, escaped spaces, options of the mount and of the file system."""
    text = (
        "36 35 98:0 /mnt1 /mnt/with\\040space rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n"
        "37 35 0:5 / /proc ro - proc proc rw\n"
    )
    first, second = parse_mountinfo(text)
    assert (first.device, first.root, first.mount_point) == ("98:0", "/mnt1", "/mnt/with space")
    assert first.propagation == ("master:1", "shared:7")
    assert first.superblock_options == {"rw", "errors=continue"}
    assert not first.is_read_only
    assert second.is_read_only
    assert second.propagation == ()


def test_taints_are_written_as_kubectl_writes_them() -> None:
    """With and without a value."""
    taints = ("cacheagent.io/cold:NoSchedule", "pool=gpu:NoExecute")
    made = kubelet(address="10.0.0.1", authority=Path("/ca"), cgroup="c", taints=taints, name_server="10.0.0.1")
    assert made["registerWithTaints"] == [
        {"key": "cacheagent.io/cold", "effect": "NoSchedule"},
        {"key": "pool", "value": "gpu", "effect": "NoExecute"},
    ]


def test_clusters_on_one_machine_share_nothing() -> None:
    """Folder, bridge, addresses and ports of each slot are its own."""
    slots = [Slot(index=index) for index in range(SLOTS)]
    for facts in (
        [slot.folder for slot in slots],
        [slot.bridge for slot in slots],
        [slot.address for slot in slots],
        [slot.pod_subnet(1) for slot in slots],
        [slot.etcd_port for slot in slots],
    ):
        assert len(set(facts)) == SLOTS
    assert len(slots[-1].link(200)) <= 15, "names of links may not be longer"


def test_the_pause_program_waits_until_it_is_killed(tmp_path: Path) -> None:
    """It is a program that the kernel runs, and it does not end by itself."""
    path = tmp_path / "pause"
    path.write_bytes(pause_program())
    path.chmod(0o755)
    with subprocess.Popen([path]) as child:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
        child.kill()
        assert child.wait(10) == -9


def test_the_true_program_ends_well(tmp_path: Path) -> None:
    """By itself, and with a zero."""
    path = tmp_path / "true"
    path.write_bytes(true_program())
    path.chmod(0o755)
    assert subprocess.run([path], check=False, timeout=60).returncode == 0
