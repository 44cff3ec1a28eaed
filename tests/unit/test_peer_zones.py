"""An exchange over several zones: what crosses between them, and who is asked when somebody stops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import exchange, rules
from cacheagent.peers.exchange import Exchange
from cacheagent.peers.orders import Adopt
from cacheagent.peers.protocol import More, pack_set, unpack_set
from cacheagent.peers.rules import FAR_BYTES, PATIENCE_S, Home, find_slow
from tests.fakes.peer_exchange import DIGEST, ExchangeScene, FakeJob, be_quick
from tests.fakes.running import until

pytestmark = pytest.mark.asyncio

PIECES = 40


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks of milliseconds; nobody is given up, or slow, unless a test says so."""
    be_quick(monkeypatch)
    monkeypatch.setattr(exchange, "RETRY_S", (60.0,))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[ExchangeScene]:
    """n0 and n1 in one zone, n2 and n3 in another."""
    zones = {"n0": "a", "n1": "a", "n2": "b", "n3": "b"}
    with ExchangeScene(tmp_path / "cache", tuple(zones), (PIECES,), zones) as made:
        yield made


async def begin(scene: ExchangeScene, *, complete: str = "") -> tuple[Exchange, FakeJob]:
    """All have let this node in; it knows what they have. `complete`: who has everything."""
    running = await scene.start()
    job, _share = scene.begin(running)
    for name in ("n1", "n2", "n3"):
        scene.let_in(name, complete=name == complete)
    await until(lambda: running._is_open, "the others have answered")
    return running, job


def brought(scene: ExchangeScene, home: str) -> set[int]:
    """Pieces of a home in the other zone that this node brings into its own."""
    return {piece for piece in scene.of(home) if scene.zones.is_brought(piece)}


def from_mate(scene: ExchangeScene, home: str) -> set[int]:
    """Pieces of a home that this node takes from its zone's other member."""
    return {piece for piece in scene.of(home) if scene.zones.sources[piece] == "n1"}


async def test_a_piece_is_asked_for_beyond_the_zone_by_one_member(scene: ExchangeScene) -> None:
    """This node asks the homes there for half of what they have, its zone's other member for the rest, the origin for
    its own."""
    running, job = await begin(scene)
    homes = {name: brought(scene, name) for name in ("n2", "n3")}
    await scene.expects(n1=from_mate(scene, "n1") | from_mate(scene, "n2") | from_mate(scene, "n3"), **homes)
    assert scene.of("n1") == from_mate(scene, "n1")
    assert abs(len(homes["n2"] | homes["n3"]) - PIECES / 4) <= 1
    await until(lambda: set(job.wanted) == scene.of("n0"), "this node's own pieces")
    await running.leave()


async def test_what_a_member_of_the_zone_has_does_not_cross_again(scene: ExchangeScene) -> None:
    """It has everything: nothing is asked of others, near or far, nor of the origin."""
    running, job = await begin(scene, complete="n1")
    await scene.expects(n1=set(range(PIECES)), n2=set(), n3=set())
    assert not job.wanted
    await running.leave()


async def test_a_zone_home_that_dies_is_followed_by_the_next_in_its_zone(scene: ExchangeScene) -> None:
    """Which asks the homes for what it brought from there, and the origin for what it was itself the home of."""
    running, job = await begin(scene)
    scene.die("n1")
    await scene.expects(n2=scene.of("n2"), n3=scene.of("n3"))
    await until(lambda: set(job.wanted) == scene.of("n0") | scene.of("n1"), "its own")
    await running.leave()


async def test_who_takes_over_goes_to_the_home_before_the_origin(scene: ExchangeScene) -> None:
    """Asked by the very member that it waits for, which is that one's zone home. The control is a piece of the member's
    own."""
    running, job = await begin(scene)
    await until(lambda: set(job.wanted) == scene.of("n0"), "this node's own pieces")
    piece, own = min(from_mate(scene, "n2")), min(from_mate(scene, "n1"))
    running.adopt(Adopt(digest=DIGEST, client="n1", pieces=pack_set({piece, own})))
    await scene.expects(n2=brought(scene, "n2") | {piece}, n3=brought(scene, "n3"))
    await until(lambda: set(job.wanted) == scene.of("n0") | {own}, "the control")
    await running.leave()


async def test_what_is_about_to_come_from_the_home_is_not_moved(scene: ExchangeScene) -> None:
    """The zone's other member asks this node to take over what it brings already: nothing changes."""
    running, job = await begin(scene)
    await scene.expects(n2=brought(scene, "n2"), n3=brought(scene, "n3"))
    running.adopt(Adopt(digest=DIGEST, client="n1", pieces=pack_set(brought(scene, "n2"))))
    await scene.expects(n2=brought(scene, "n2"), n3=brought(scene, "n3"))
    assert not scene.receiving.releases
    assert set(job.wanted) <= scene.of("n0")
    await running.leave()


async def test_a_home_that_dies_is_followed_by_the_next_in_its_own_zone(scene: ExchangeScene) -> None:
    """So that the origin is asked once, whatever the zones; it is asked by this node only when nobody is left there."""
    running, job = await begin(scene)
    await scene.expects(n2=brought(scene, "n2"), n3=brought(scene, "n3"))
    scene.die("n2")
    await scene.expects(n3=brought(scene, "n2") | brought(scene, "n3"))
    more = scene.connection("n3").asks[-1]
    assert isinstance(more, More)
    assert set(unpack_set(more.adopt, PIECES)) == brought(scene, "n2")
    assert set(job.wanted) <= scene.of("n0")
    scene.die("n3")
    rest = brought(scene, "n2") | brought(scene, "n3")
    await until(lambda: set(job.wanted) == scene.of("n0") | rest, "the origin is asked")
    await running.leave()


def far_home(name: str, delivered: int, owed: int, rate: float) -> Home:
    """Of another zone; counted in pieces."""
    return Home(name, delivered * PIECE_SIZE_BYTES, owed * PIECE_SIZE_BYTES, rate * PIECE_SIZE_BYTES, 20.0)


async def test_a_home_in_another_zone_is_not_slow_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is some pieces behind, which is much where few are owed. More of them, or none while the others have finished,
    is slow; so is the first in a member's own zone, where bytes come all the time."""
    monkeypatch.setattr(rules, "PATIENCE_S", PATIENCE_S)
    others = [far_home(name, 8, 12, 0.4) for name in ("b", "c")]
    by_chance = far_home("a", 3, 17, 0.15)
    assert find_slow([by_chance, *others], is_far=True) == []
    assert find_slow([by_chance, *others]) == ["a"]
    behind = FAR_BYTES // PIECE_SIZE_BYTES + 1
    late = [far_home(name, behind + 4, 12, 0.4) for name in ("b", "c")]
    assert find_slow([far_home("a", 3, 17, 0.15), *late], is_far=True) == ["a"]
    ready = [far_home(name, 8, 0, 0.4) for name in ("b", "c")]
    assert find_slow([far_home("a", 3, 5, 0.15), *ready], is_far=True) == ["a"]


async def test_a_home_in_another_zone_that_stops_is_relieved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the others have brought six pieces more each, or, once they have finished, after some seconds."""
    zones = {"n0": "a", "n1": "b", "n2": "b", "n3": "b"}
    with ExchangeScene(tmp_path / "cache", tuple(zones), (80,), zones) as scene:
        running, _job = await begin(scene)
        await scene.expects(**{name: scene.of(name) for name in ("n1", "n2", "n3")})
        monkeypatch.setattr(rules, "PATIENCE_S", PATIENCE_S)
        now = time.monotonic() + 10

        def bring(pieces: int, *names: str) -> list[str]:
            for name in names:
                scene.move(name, pieces * PIECE_SIZE_BYTES, pieces * PIECE_SIZE_BYTES)
            return [link.name for link in running._pace.slow(now)]

        assert bring(8, "n1", "n2", "n3") == []
        assert bring(FAR_BYTES // PIECE_SIZE_BYTES, "n2", "n3") == []
        assert bring(1, "n2", "n3") == ["n1"]
        assert bring(1, "n1") == [], "it goes on"
        for name in ("n2", "n3"):
            for piece in scene.of(name):
                scene.send(name, piece)
        assert bring(0) == []
        now += 4
        assert bring(0) == ["n1"]
        await running.leave()
