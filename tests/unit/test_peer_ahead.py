"""A node that has more than it can send leaves the origin to those who have less."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheagent.peers import exchange
from cacheagent.peers.exchange import AHEAD_S, Exchange
from cacheagent.peers.orders import Adopt, Backlog
from cacheagent.peers.own import AT_ORIGIN
from cacheagent.peers.pace import FED
from cacheagent.peers.protocol import pack_set
from cacheagent.peers.rules import SMOOTH
from tests.fakes.peer_exchange import DIGEST, ExchangeScene, FakeJob, be_quick
from tests.fakes.running import until

PIECES = 40


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExchangeScene]:
    """Two nodes."""
    be_quick(monkeypatch)
    with ExchangeScene(tmp_path / "cache", files=(PIECES,)) as made:
        yield made


async def begin(scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch) -> tuple[Exchange, FakeJob]:
    """Its first piece is here; what the other one sends fills its link, and nothing of it was sent on yet."""
    running = await scene.start()
    job, _share = scene.begin(running)
    job.is_open = False
    scene.let_in("n1")
    await until(lambda: len(job.wanted) == 1, "its own come first")
    monkeypatch.setattr(running._pace, "is_fed", lambda _inflow: True)
    scene.service.waits = Backlog(seconds=2 * AHEAD_S)
    await until(lambda: running._placement._own.is_held, "it is held")
    job._bring(tuple(job.wanted))
    return running, job


async def goes_on(running: Exchange, job: FakeJob) -> None:
    """It asks for the next ones, which ends the test."""
    await until(lambda: len(job.wanted) == 1 + AT_ORIGIN, "it asks for the next ones")
    await running.leave()


async def ticks(running: Exchange) -> None:
    """It could have done something."""
    before = running._ticks
    await until(lambda: running._ticks > before + 3, "a few ticks")


@pytest.mark.asyncio
async def test_who_is_ahead_asks_for_no_more_until_it_was_sent(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hands nothing over meanwhile: it has enough. Then it goes on."""
    running, job = await begin(scene, monkeypatch)
    await ticks(running)
    assert len(job.wanted) == 1
    running.adopt(Adopt(digest=DIGEST, client="n1", pieces=pack_set(scene.of("n0"))))
    await ticks(running)
    assert scene.connection("n1").expected == scene.of("n1")
    scene.service.waits = Backlog(seconds=AHEAD_S / 2)
    await goes_on(running, job)


@pytest.mark.asyncio
async def test_what_is_fetched_in_somebodys_place_does_not_wait(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for it who have nothing else."""
    running, job = await begin(scene, monkeypatch)
    await ticks(running)
    assert len(job.wanted) == 1, "the control"
    scene.die("n1")
    running._placement.give_up(running._links["n1"])
    await goes_on(running, job)


@pytest.mark.asyncio
async def test_a_link_that_others_do_not_fill_is_filled_by_the_origin(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much waits to be sent: the other one may be slow."""
    running, job = await begin(scene, monkeypatch)
    monkeypatch.setattr(running._pace, "is_fed", lambda _inflow: False)
    await goes_on(running, job)


@pytest.mark.asyncio
async def test_a_link_is_full_of_what_others_send(scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the most that ever came over some seconds, not in one look; and of some others, not of few."""
    monkeypatch.setattr(exchange, "TICK_S", 1e9)
    running = await scene.start()
    scene.begin(running)
    scene.let_in("n1")
    pace, rate = running._pace, [0.0]
    monkeypatch.setattr(pace, "_rate", lambda: rate[0])
    for few in (True, False):
        monkeypatch.setattr("cacheagent.peers.pace.FED_BY", 2 if few else 1)
        rate[0] = 100.0
        assert pace.is_fed(100.0) is not few
    rate[0] = 0.0
    assert not pace.is_fed(0.0)
    for _ in range(20 * SMOOTH):
        pace.is_fed(100.0)
    pace.is_fed(300.0)
    rate[0] = 140 * FED
    assert pace.is_fed(100.0)
    rate[0] = 90 * FED
    assert not pace.is_fed(100.0)
    await running.leave()
