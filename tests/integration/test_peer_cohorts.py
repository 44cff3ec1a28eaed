"""Nodes in a tree of cohorts: one copy from the origin for all of them, every byte right, whatever happens to some.

As with one cohort, who is late on a busy machine looks slow, and somebody else is asked: bounds on what the origin sent
are between one copy and one for each cohort.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest

from cacheagent.peers import pace, protocol, rules
from tests.fakes.origin import Origin
from tests.fakes.peer_agents import MODEL, shards
from tests.fakes.peer_caller import Caller
from tests.fakes.peer_cohorts import CohortNodes
from tests.fakes.running import until

pytestmark = pytest.mark.asyncio

SLOW_BYTES_PER_S = 50e6


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is slow is waited for until it is beyond doubt: on a busy machine many are, for seconds."""
    monkeypatch.setattr(rules, "PATIENCE_S", 20.0)
    monkeypatch.setattr(pace, "PATIENCE_S", 20.0)
    monkeypatch.setattr(rules, "NO_PROGRESS_S", 60.0)


def large_bytes(files: dict[str, bytes]) -> int:
    """Of one copy."""
    return sum(len(data) for path, data in files.items() if "shard" in path)


def copies(origin: Origin, files: dict[str, bytes]) -> float:
    """Of the large files, sent by the origin."""
    return sum(origin.body_bytes_sent(path) for path in files if "shard" in path) / large_bytes(files)


def require(fleet: CohortNodes, files: dict[str, bytes], names: Collection[str]) -> None:
    """These have published every one of the files, byte for byte."""
    for name in names:
        assert fleet.files(name).items() >= files.items()


async def test_one_copy_from_the_origin_serves_three_cohorts(tmp_path: Path) -> None:
    """Only the root asks the origin. Who is not in a server's circle gets nothing of it, though a member of the same
    fleet; a member of the cohort below it does."""
    files = shards(5)
    with Origin(files) as origin:
        origin.add_sums(MODEL)
        async with CohortNodes(tmp_path, origin) as fleet:
            fleet.begin()
            await fleet.wait()
            require(fleet, files, fleet.ports)
            assert 1 <= copies(origin, files) < 2, "three without a tree"
            (root, *_), (below, *_), (far, *_) = fleet.levels
            assert await asyncio.to_thread(answer, fleet, root, far) == "member"
            assert await asyncio.to_thread(answer, fleet, root, below) == ""


async def test_a_member_of_the_root_that_dies_in_the_middle_costs_nobody_the_model(tmp_path: Path) -> None:
    """Others of the root take over what it was to bring, for those below too."""
    files = shards(8)
    with Origin(files, bytes_per_s=SLOW_BYTES_PER_S) as origin:
        origin.add_sums(MODEL)
        async with CohortNodes(tmp_path, origin) as fleet:
            (dead, *_), *_ = fleet.levels
            fleet.begin()
            await until(lambda: copies(origin, files) > 1 / 3, "it is on its way")
            await fleet.kill(dead)
            await fleet.wait()
            require(fleet, files, fleet.ports.keys() - {dead})
            assert 1 <= copies(origin, files) < 2.5


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("was_there", [True, False])
async def test_a_cohort_that_is_gone_costs_one_more_copy_and_nobody_the_model(
    tmp_path: Path, *, was_there: bool
) -> None:
    """The one in the middle, which the last one is fed by: that asks the origin, once for all of its members. Ends of
    connections tell that it is gone."""
    files = shards(8)
    with Origin(files, bytes_per_s=SLOW_BYTES_PER_S) as origin:
        origin.add_sums(MODEL)
        async with CohortNodes(tmp_path, origin) as fleet:
            root, gone, last = fleet.levels
            fleet.begin(*root, *last, *(gone if was_there else ()))
            if was_there:
                await until(lambda: copies(origin, files) > 1 / 3, "it is on its way")
                await fleet.kill(*gone)
            await fleet.wait()
            require(fleet, files, (*root, *last))
            assert 1 < copies(origin, files) < 2.5, "six without each other"


async def test_large_zones_are_cohorts_of_their_own(tmp_path: Path) -> None:
    """A piece comes into each of them once."""
    files = shards(5)
    with Origin(files) as origin:
        origin.add_sums(MODEL)
        async with CohortNodes(tmp_path, origin, zones="aaaabbbb") as fleet:
            fleet.begin()
            await fleet.wait()
            require(fleet, files, fleet.ports)
            assert 1 <= copies(origin, files) < 2
            crossed = sum(counted.crossed for counted in fleet.counted.values())
            assert 0.9 * large_bytes(files) < crossed < 2 * large_bytes(files), "one copy, and what is asked for twice"


def answer(fleet: CohortNodes, server: str, client: str) -> str:
    """With what code one refuses another; empty if it does not."""
    with Caller(fleet, to=server) as caller:
        caller.say(caller.ask(fleet.digest, client=client, key=fleet.keys[client], pieces=6))
        note = caller.note()
        return note.code if isinstance(note, protocol.Refusal) else ""
