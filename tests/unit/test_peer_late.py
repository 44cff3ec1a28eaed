"""Homes that are later than others, or slow, or stop: what is asked of whom instead, and what the origin is spared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import pace, rules
from cacheagent.peers.exchange import Exchange
from cacheagent.peers.orders import Adopt
from cacheagent.peers.pace import LATE_PIECES
from cacheagent.peers.protocol import More, pack_set, unpack_set
from cacheagent.peers.rules import NO_PROGRESS_S
from tests.fakes.peer_exchange import DIGEST, ExchangeScene, FakeJob, be_quick
from tests.fakes.running import until

pytestmark = pytest.mark.asyncio

PIECES = 60
OTHERS = ("n1", "n2", "n3")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks of milliseconds; nobody is given up, slow or late unless a test says so."""
    be_quick(monkeypatch)
    monkeypatch.setattr(pace, "PATIENCE_S", 1e9)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[ExchangeScene]:
    """Four nodes."""
    with ExchangeScene(tmp_path / "cache", ("n0", *OTHERS), (PIECES,)) as made:
        yield made


async def begin(scene: ExchangeScene) -> tuple[Exchange, FakeJob]:
    """All are there, and this node's own pieces have come."""
    running = await scene.start()
    job, _share = scene.begin(running)
    for name in OTHERS:
        scene.let_in(name)
    await until(lambda: running._placement.here == scene.of("n0"), "this node's own pieces")
    return running, job


def adopts(scene: ExchangeScene, name: str) -> set[int]:
    """What a member was asked to adopt, or offered to be relieved of, since it let this node in."""
    later = [ask for ask in scene.connection(name).asks if isinstance(ask, More)]
    return {piece for ask in later for piece in unpack_set(ask.adopt, PIECES)}


def of_before_me(scene: ExchangeScene, home: str, helper: str) -> set[int]:
    """Pieces of a home that this node may ask of a helper: not the one that is on its way."""
    return {piece for piece in sorted(scene.of(home))[1:] if scene.zones.before_me(piece, {helper})}


async def test_a_home_that_owes_more_is_spared_a_piece_by_another(scene: ExchangeScene) -> None:
    """The next of those in whose rank that one is before this node, once; nobody is asked to fetch anything."""
    running, job = await begin(scene)
    late = running._links["n2"]
    movable = of_before_me(scene, "n2", "n1")
    assert set() < movable < scene.of("n2")
    running._placement.share_out([(late, 5.0, {"n1"})])
    moved = min(movable)
    await scene.expects(n1=scene.of("n1") | {moved}, n2=scene.of("n2") - {moved})
    assert running._links["n1"].relieved_at > time.monotonic() + 1, "it has to get it first"
    for _ in movable:
        running._placement.share_out([(late, 5.0, {"n1"})])
    await scene.expects(n1=scene.of("n1") | movable, n2=scene.of("n2") - movable)
    running._placement.share_out([(late, 5.0, {"n1"})])
    await scene.expects(n1=scene.of("n1") | movable, n2=scene.of("n2") - movable)
    offered = set().union(*(scene.of(name) for name in OTHERS))
    assert adopts(scene, "n1") <= offered - movable
    assert set(job.wanted) == scene.of("n0")
    await running.leave()


async def test_each_helper_is_asked_once_at_a_time(scene: ExchangeScene) -> None:
    """Who owes the most is spared first."""
    running, _job = await begin(scene)
    late = [(running._links[name], 5.0, {"n1"}) for name in ("n2", "n3")]
    running._placement.share_out(late)
    moved = min(of_before_me(scene, "n2", "n1"))
    await scene.expects(n1=scene.of("n1") | {moved}, n2=scene.of("n2") - {moved}, n3=scene.of("n3"))
    await running.leave()


async def test_what_has_begun_stays_where_it_is(scene: ExchangeScene) -> None:
    """It would begin anew elsewhere. So would the next one, perhaps."""
    running, _job = await begin(scene)
    late = running._links["n2"]
    first, second, *others = sorted(scene.of("n2"))
    begun = {second, *others[:4]}
    scene.move("n2", PIECE_SIZE_BYTES, PIECE_SIZE_BYTES, begun=begun)
    movable = of_before_me(scene, "n2", "n1") - begun - {first}
    for _ in scene.of("n2"):
        running._placement.share_out([(late, 5.0, {"n1"})])
    await scene.expects(n1=scene.of("n1") | movable, n2=scene.of("n2") - movable)
    assert movable < of_before_me(scene, "n2", "n1"), "the control"
    await running.leave()


async def test_who_waits_for_this_node_is_not_asked(scene: ExchangeScene) -> None:
    """Nor is anybody else, for what others have asked this node to adopt: all would wait in a circle."""
    running, _job = await begin(scene)
    late = running._links["n2"]
    movable = of_before_me(scene, "n2", "n1")
    kept = set(sorted(movable)[:3])
    running.adopt(Adopt(digest=DIGEST, client="n1", pieces=pack_set(kept)))
    for _ in movable:
        running._placement.share_out([(late, 5.0, {"n1"})])
    await scene.expects(n1=scene.of("n1") | movable - kept, n2=scene.of("n2") - (movable - kept))
    await running.leave()


async def test_what_a_home_hands_over_meanwhile_is_fetched_here(scene: ExchangeScene) -> None:
    """While the piece is on its way from the home to a helper, or is there: the home waits for this node now."""
    running, job = await begin(scene)
    late = running._links["n2"]
    first, second, *_ = sorted(of_before_me(scene, "n2", "n1"))
    running._placement.share_out([(late, 5.0, {"n1"})])
    await until(lambda: first in running._links["n1"].expected, "it is asked of the helper")
    scene.receiving.hold = True
    running._placement.share_out([(late, 5.0, {"n1"})])
    await until(lambda: bool(scene.receiving.releases), "the next one is on its way")
    running.adopt(Adopt(digest=DIGEST, client="n2", pieces=pack_set({first, second})))
    scene.receiving.let_go()
    await until(lambda: set(job.wanted) == scene.of("n0") | {first, second}, "the origin is asked")
    await scene.expects(n1=scene.of("n1"), n2=scene.of("n2") - {first, second})
    await running.leave()


@pytest.mark.parametrize("is_up", [True, False])
async def test_what_a_helper_does_not_bring_comes_from_its_home_after_all(scene: ExchangeScene, *, is_up: bool) -> None:
    """If that is there; and it is not shared out once more."""
    running, job = await begin(scene)
    late, helper = running._links["n2"], running._links["n1"]
    running._placement.share_out([(late, 5.0, {"n1"})])
    piece = min(of_before_me(scene, "n2", "n1"))
    await until(lambda: piece in helper.expected, "it is asked of the helper")
    if is_up:
        running._placement.take_back(["n3"])
        assert piece in helper.expected, "the control"
        running._placement.take_back(["n0", "n1"])
        await until(lambda: piece in late.expected, "its home is asked again")
        assert helper.expected == scene.of("n1")
        assert set(running._placement.untried(late)) == scene.of("n2") - {piece}
    else:
        scene.die("n2")
        running._placement.give_up(late)
        running._placement.move(helper, [piece])
        third = running._links["n3"]
        await until(lambda: piece in third.expected or piece in job.wanted, "somebody else is asked, or the origin")
    await running.leave()


async def test_who_is_late(scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has brought half, and owes some pieces more than others, who owes the most first, as long as they take a
    while. Who takes less than others of what it is sent is no helper."""
    running, _job = await begin(scene)
    links = running._links

    def late(*behind: str) -> list[tuple[str, set[str]]]:
        return [(link.name, names) for link, _rest_s, names in running._pace.late(behind)]

    for name in OTHERS:
        scene.move(name, 10 * PIECE_SIZE_BYTES, 10 * PIECE_SIZE_BYTES)
    running._pace.slow(running._pace.started + 100)
    few = min(len(links[name].expected) for name in OTHERS)
    for name in OTHERS:
        for piece in sorted(links[name].expected)[few:]:
            scene.send(name, piece)
    assert not late()
    for piece in sorted(links["n1"].expected)[: LATE_PIECES + 1]:
        scene.send("n1", piece)
    for piece in sorted(links["n3"].expected)[:1]:
        scene.send("n3", piece)
    assert not late()
    half = len(links["n2"].expected) - len(scene.of("n2")) // 2
    for name in OTHERS:
        for piece in sorted(links[name].expected)[:half]:
            scene.send(name, piece)
    assert late() == [("n2", {"n1"}), ("n3", {"n1"})]
    assert late("n1") == []
    monkeypatch.setattr(pace, "HOPS", 1e9)
    assert late() == []
    await running.leave()


@pytest.mark.parametrize("waits", [True, False])
async def test_a_slow_home_is_asked_before_the_origin(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    """What it has not asked for itself it hands over; the rest is taken from it when patience ends."""
    running, job = await begin(scene)
    monkeypatch.setattr(running._pace, "is_good", lambda link: link.name != "n1")
    piece, control = min(scene.of("n1")), min(scene.of("n3"))
    running.adopt(Adopt(digest=DIGEST, client="n2", pieces=pack_set({piece, control})))
    await until(lambda: piece in adopts(scene, "n1"), "the home is asked")
    ticks = running._ticks
    await until(lambda: running._ticks > ticks + 3, "the origin could have been asked")
    assert set(job.wanted) == scene.of("n0")
    if waits:
        running.adopt(Adopt(digest=DIGEST, client="n1", pieces=pack_set({piece})))
    else:
        monkeypatch.setattr(pace, "PATIENCE_S", 0.01)
    await until(lambda: set(job.wanted) == scene.of("n0") | {piece}, "the origin is asked")
    assert piece not in running._links["n1"].expected
    assert control in running._links["n3"].expected, "that home is not slow"
    assert len(job.wanted) == len(set(job.wanted))
    await running.leave()


async def test_a_home_that_is_good_again_keeps_its_pieces(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When patience ends, it is looked at once more."""
    running, job = await begin(scene)
    slow = {"n1"}
    monkeypatch.setattr(running._pace, "is_good", lambda link: link.name not in slow)
    piece = min(scene.of("n1"))
    running.adopt(Adopt(digest=DIGEST, client="n2", pieces=pack_set({piece})))
    await until(lambda: piece in adopts(scene, "n1"), "the home is asked")
    slow.clear()
    monkeypatch.setattr(pace, "PATIENCE_S", 0.0)
    await until(lambda: not running._placement._handing._pleas, "patience has ended")
    assert piece in running._links["n1"].expected
    assert set(job.wanted) == scene.of("n0")
    await running.leave()


async def test_after_a_standstill_who_brings_something_is_asked_again(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What still waits for the origin then comes from the members that should have brought it. The others' pieces come
    from the origin."""
    running, job = await begin(scene)
    job.is_open = False
    own = set(job.wanted)
    monkeypatch.setattr(rules, "NO_PROGRESS_S", 0.05)
    await until(lambda: len(job.wanted) > len(own), "the origin is asked")
    monkeypatch.setattr(rules, "NO_PROGRESS_S", 1e9)
    kept = {name: min(scene.of(name)) for name in OTHERS}
    await scene.expects(**{name: {piece} for name, piece in kept.items()})
    scene.send("n1", kept["n1"])
    asked = set(job.wanted)
    await scene.expects(n1=scene.of("n1") - asked, n2={kept["n2"]}, n3={kept["n3"]})
    job.is_open = True
    job._bring(tuple(asked - own))
    rest = set(range(PIECES)) - scene.of("n1") - {kept["n2"], kept["n3"]}
    await until(lambda: set(job.wanted) == rest | asked, "the rest")
    assert len(job.wanted) == len(set(job.wanted))
    await asyncio.sleep(0)
    await running.leave()


@pytest.mark.parametrize("ran", [True, False])
async def test_who_stood_still_itself_waits_on(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch, *, ran: bool
) -> None:
    """That nothing came for a minute in which this node did not run, says nothing of the others."""
    running, job = await begin(scene)
    own = set(job.wanted)
    ticks = running._ticks
    await until(lambda: running._ticks > ticks, "it runs")
    monkeypatch.setattr(rules, "NO_PROGRESS_S", NO_PROGRESS_S)
    running._movement._since -= 60
    if not ran:
        running._ticked_at -= 60
    ticks = running._ticks
    await until(lambda: running._ticks > ticks + 3, "it has judged")
    assert (set(job.wanted) == own) is not ran
    await running.leave()
