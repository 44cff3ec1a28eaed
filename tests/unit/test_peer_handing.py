"""Own pieces that others ask the origin for: from members that wait behind a full link to those whose link is free."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cacheagent.peers import exchange, handing
from cacheagent.peers.orders import Adopt
from cacheagent.peers.own import OwnPieces
from cacheagent.peers.protocol import pack_set, unpack_set
from tests.fakes.peer_exchange import DIGEST, ExchangeScene, be_quick
from tests.fakes.running import until

PIECES = 40
BEGUN = 1
"""Pieces at the origin before the first one is here."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks of milliseconds; nobody is given up, or slow."""
    be_quick(monkeypatch)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[ExchangeScene]:
    """Two nodes."""
    with ExchangeScene(tmp_path / "cache", files=(PIECES,)) as made:
        yield made


def adopt(pieces: set[int]) -> Adopt:
    """As the other member's server was asked."""
    return Adopt(digest=DIGEST, client="n1", pieces=pack_set(pieces))


def adopted(scene: ExchangeScene) -> set[int]:
    """What the other member was asked to adopt."""
    return {piece for ask in scene.connection("n1").asks for piece in unpack_set(ask.adopt, PIECES)}


@pytest.mark.asyncio
async def test_who_has_asked_for_its_own_offers_to_take_more(scene: ExchangeScene) -> None:
    """It asks the home, again and again, and the origin for nothing before the home says so. As long as its own wait,
    it offers nothing."""
    running = await scene.start()
    job, _share = scene.begin(running)
    job.is_open = False
    scene.let_in("n1")
    await until(lambda: len(job.wanted) == BEGUN, "its own come first")
    ticks = running._ticks
    await until(lambda: running._ticks > ticks + 3, "it could have offered")
    assert not adopted(scene)
    job.is_open = True
    job._bring(tuple(job.wanted))
    await until(lambda: adopted(scene) == scene.of("n1"), "it offers")
    assert set(job.wanted) == scene.of("n0")
    some = set(sorted(scene.of("n1"))[-3:])
    running.adopt(adopt(some))
    await until(lambda: set(job.wanted) == scene.of("n0") | some, "it takes over what it is told to")
    assert scene.connection("n1").expected == scene.of("n1") - some
    assert len(job.wanted) == len(set(job.wanted))
    await running.leave()


@pytest.mark.asyncio
async def test_the_homes_that_owe_the_most_are_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at a time, then the next two; who hands something over is asked again at once."""
    names = ("n0", "n1", "n2", "n3", "n4")
    with ExchangeScene(tmp_path / "cache", names, (50,)) as scene:
        running = await scene.start()
        _job, _share = scene.begin(running)
        for name in names[1:]:
            scene.let_in(name)
        await until(lambda: running._placement.here == scene.of("n0"), "its own are here")
        asked = running._placement._handing
        monkeypatch.setattr(asked, "is_due", lambda: False)
        asked._asked.clear()
        owed = {running._links[name]: sorted(scene.of(name))[skip:] for skip, name in enumerate(names[1:])}
        order: list[str] = []
        for link in owed:
            monkeypatch.setattr(link, "offer", partial(_note, order, link.name))
        asked.offer(owed)
        assert order == ["n1", "n2"]
        asked.offer(owed)
        assert order[2:] == ["n3", "n4"]
        assert asked._again_s == handing.AGAIN_S
        asked.taken("n3")
        asked.offer(owed)
        assert order[4:] == ["n3", "n1"]
        asked.offer(owed)
        assert asked._again_s == 2 * handing.AGAIN_S, "all were asked, and had nothing"
        await running.leave()


def _note(order: list[str], name: str, _pieces: object) -> None:
    order.append(name)


@pytest.mark.asyncio
async def test_who_has_not_begun_offers_nothing(tmp_path: Path) -> None:
    """Its own pieces of another file are to be asked for still."""
    with ExchangeScene(tmp_path / "cache", files=(PIECES, PIECES)) as scene:
        running = await scene.start()
        _job, _share = scene.begin(running)
        scene.let_in("n1")
        first = {piece for piece in scene.of("n0") if piece < PIECES}
        await until(lambda: first <= running._placement.here, "its own of the first file are here")
        ticks = running._ticks
        await until(lambda: running._ticks > ticks + 3, "it could have offered")
        more = [ask for ask in scene.connection("n1").asks if ask.adopt]
        assert not more
        job, _share = scene.begin(running, 1)
        job.is_open = False
        await until(lambda: bool(job.wanted), "its own of the second file come first")
        job.is_open = True
        job._bring(tuple(job.wanted))
        await until(lambda: any(ask.adopt for ask in scene.connection("n1").asks), "it offers")
        await running.leave()


@pytest.mark.asyncio
async def test_a_home_hands_over_the_last_of_what_waits(scene: ExchangeScene) -> None:
    """At most a few at once, and what it has asked for itself it keeps; an offer that crossed its answer changes
    nothing, and nothing is asked for twice."""
    running = await scene.start()
    job, _share = scene.begin(running)
    job.is_open = False
    scene.let_in("n1")
    await until(lambda: len(job.wanted) == BEGUN, "it has begun")
    mine = sorted(scene.of("n0"))
    running.adopt(adopt(set(mine)))
    given = set(mine[-handing.AT_ONCE :])
    await until(lambda: given <= scene.connection("n1").expected, "the last are handed over")
    assert adopted(scene) == given
    running.adopt(adopt(given))
    assert not scene.receiving.releases
    running.adopt(adopt(set(mine[:BEGUN])))
    job.is_open = True
    job._bring(tuple(job.wanted))
    await until(lambda: set(job.wanted) == set(mine) - given, "it asks for the rest")
    assert len(job.wanted) == len(set(job.wanted))
    await running.leave()


@pytest.mark.asyncio
async def test_what_was_handed_over_comes_back_from_who_dies(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home asks the origin for it, as for all that the dead member owed."""
    monkeypatch.setattr(exchange, "RETRY_S", (60.0,))
    running = await scene.start()
    job, _share = scene.begin(running)
    job.is_open = False
    scene.let_in("n1")
    await until(lambda: len(job.wanted) == BEGUN, "it has begun")
    mine = scene.of("n0")
    running.adopt(adopt(mine))
    await until(lambda: scene.connection("n1").expected & mine, "some are handed over")
    job.is_open = True
    job._bring(tuple(job.wanted))
    scene.end("n1", "reset")
    scene.end("n1", "connect")
    await until(lambda: set(job.wanted) == set(range(PIECES)), "all of it")
    assert len(job.wanted) == len(set(job.wanted))
    await running.leave()


@pytest.mark.asyncio
async def test_who_is_no_member_gets_nothing(scene: ExchangeScene) -> None:
    """Nor one that has not let this node in: it would not hear of it. The control is the same member, connected."""
    running = await scene.start()
    job, _share = scene.begin(running)
    job.is_open = False
    await until(lambda: len(job.wanted) == BEGUN, "it has begun")
    mine = scene.of("n0")
    running.adopt(Adopt(digest=DIGEST, client="stranger", pieces=pack_set(mine)))
    running.adopt(adopt(mine))
    waiting = running._placement._own.waiting
    assert len(waiting) == len(mine) - BEGUN
    scene.let_in("n1")
    running.adopt(adopt(mine))
    assert len(waiting) - len(running._placement._own.waiting) == handing.AT_ONCE
    await asyncio.sleep(0)
    await running.leave()


@pytest.mark.parametrize(
    ("waiting", "members", "wait_s", "given"),
    [
        (40, 2, 0.1, handing.AT_ONCE),
        (5, 2, 0.1, 2),
        (1, 64, 1e9, 0),
        (2, 64, handing.WORTH_S, 1),
        (63, 64, handing.WORTH_S, 1),
        (63, 64, handing.WORTH_S - 0.1, 0),
        (64, 64, 0.1, 1),
        (0, 2, 0.0, 0),
    ],
)
def test_a_home_hands_over_its_part_and_keeps_the_last(waiting: int, members: int, wait_s: float, given: int) -> None:
    """Of two members the other gets half; of 64 one, where fewer wait, if they wait for seconds."""
    assert handing.part(waiting, members, wait_s) == given


def test_what_is_given_is_not_asked_for() -> None:
    """The last ones of those that may go, and at most so many; the rest is asked for in order."""
    asked: list[int] = []

    def ask(piece: int) -> bool:
        asked.append(piece)
        return True

    own = OwnPieces(ask, others=8)
    own.add([7, 5, 3, 1, 9])
    assert own.give({1, 5, 7, 8}, 2) == [5, 7]
    assert own.give({1, 3}, 0) == []
    assert not own.is_idle
    for piece in own.open():
        own.add([piece])
    own.done([1])
    own.done([3])
    assert asked == [1, 3, 9]
    assert own.is_idle
