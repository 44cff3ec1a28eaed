"""An exchange in a cohort that another one feeds: what is asked of whom, when somebody stops, and whose word counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.peers import exchange, rules
from cacheagent.peers.exchange import Exchange
from cacheagent.peers.keys import NodeKey, is_signed
from cacheagent.peers.orders import Adopt, Have, Serve
from cacheagent.peers.protocol import pack_set, seal_to_sign, unpack_set
from cacheagent.peers.rules import NO_PROGRESS_S, PATIENCE_S, Movement
from cacheagent.peers.shelf import Shelf
from tests.fakes.peer_exchange import DIGEST, ExchangeScene, FakeJob, be_quick
from tests.fakes.running import until

pytestmark = pytest.mark.asyncio

PIECES = 40
ABOVE = ("a0", "a1", "a2")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks of milliseconds; nobody is given up, or slow, unless a test says so."""
    be_quick(monkeypatch)
    monkeypatch.setattr(exchange, "RETRY_S", (60.0,))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[ExchangeScene]:
    """n0 and n1 in one cohort, three members above it."""
    with ExchangeScene(tmp_path / "cache", ("n0", "n1", *ABOVE), (PIECES,), above=ABOVE) as made:
        yield made


def fed_by(scene: ExchangeScene, name: str, home: str = "n0") -> set[int]:
    """Pieces of a home of this cohort whose home above is this member."""
    return {piece for piece in scene.of(home) if scene.zones._feeders[piece] == name}


async def begin(scene: ExchangeScene) -> tuple[Exchange, FakeJob]:
    """All have let this node in, as soon as it called them."""
    running = await scene.start()
    job, _share = scene.begin(running)
    scene.let_in("n1")
    await until(lambda: running._is_open, "the other one has answered")
    await until(lambda: scene.receiving.connections.keys() >= set(ABOVE), "they are called")
    for name in ABOVE:
        scene.let_in(name)
    return running, job


async def test_own_pieces_are_asked_of_their_homes_above(scene: ExchangeScene) -> None:
    """And nothing of the origin; those of the other member of it, as ever."""
    running, job = await begin(scene)
    await scene.expects(n1=scene.of("n1"), **{name: fed_by(scene, name) for name in ABOVE})
    assert all(fed_by(scene, name) for name in ABOVE)
    assert not job.wanted
    await running.leave()


async def test_nobody_above_is_called_before_he_is_needed(scene: ExchangeScene) -> None:
    """A node that has nothing to ask of the cohort above is no connection there."""
    running = await scene.start()
    scene.let_in("n1")
    await until(lambda: running._is_open, "the other one has answered")
    ticks = running._ticks
    await until(lambda: running._ticks > ticks + 2, "it could have called")
    assert scene.receiving.connections.keys() == {"n1"}
    await running.leave()


async def test_who_is_called_late_has_as_long_to_let_this_node_in(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first call on, however old the exchange is by then: until that time it may not have heard of this node.
    Then the next one is asked."""
    monkeypatch.setattr(exchange, "OUT_AFTER_S", 30.0)
    running = await scene.start()
    running._pace.started -= 60
    _job, _share = scene.begin(running)
    scene.let_in("n1")
    await until(lambda: scene.receiving.connections.keys() >= set(ABOVE), "those above are called")
    first, *others = ABOVE
    for name in others:
        scene.let_in(name)
    scene.greet(first)
    ticks = running._ticks
    await until(lambda: running._ticks > ticks + 2, "it could have been given up")
    assert scene.connection(first).expected == fed_by(scene, first)
    running._links[first].called_at -= 60
    await until(lambda: not running._links[first].expected, "it is given up")
    await running.leave()


async def test_who_dies_above_is_followed_by_the_next_there_and_at_last_by_the_origin(scene: ExchangeScene) -> None:
    """That one is asked to adopt the pieces. What the home in this cohort owes is not asked of anybody else."""
    running, job = await begin(scene)
    first, second, third = ABOVE
    await scene.expects(**{name: fed_by(scene, name) for name in ABOVE})
    scene.die(first)
    await until(
        lambda: scene.connection(second).expected | scene.connection(third).expected == scene.of("n0"), "by the others"
    )
    adopted = {
        piece
        for name in (second, third)
        for ask in scene.connection(name).asks
        for piece in unpack_set(ask.adopt, PIECES)
    }
    assert adopted == fed_by(scene, first)
    scene.die(second)
    await scene.expects(**{third: scene.of("n0")})
    assert not job.wanted
    scene.die(third)
    await until(lambda: set(job.wanted) == scene.of("n0"), "the origin is asked")
    assert scene.connection("n1").expected == scene.of("n1")
    await running.leave()


async def test_an_offer_takes_nothing_from_who_feeds_the_home(scene: ExchangeScene) -> None:
    """The other member of the cohort would take over what this node is the home of, which waits for members above that
    have not let it in yet. A piece of that member's own is the control: this node takes it over."""
    running = await scene.start()
    job, _share = scene.begin(running)
    scene.let_in("n1")
    await until(lambda: scene.receiving.connections.keys() >= set(ABOVE), "those above are called")
    control = min(scene.of("n1"))
    running.adopt(Adopt(digest=DIGEST, client="n1", pieces=pack_set(scene.of("n0") | {control})))
    taker = running._links[scene.zones._feeders[control]]
    await until(lambda: control in taker.expected, "the control is asked of its home above")
    for name in ABOVE:
        assert running._links[name].expected - {control} == fed_by(scene, name)
    assert not job.wanted
    await running.leave()


async def test_who_takes_over_in_the_cohort_goes_above_first(scene: ExchangeScene) -> None:
    """The other member dies: all of its pieces are asked of their homes above."""
    running, job = await begin(scene)
    scene.die("n1")
    await scene.expects(**{name: fed_by(scene, name) | fed_by(scene, name, "n1") for name in ABOVE})
    assert not job.wanted
    await running.leave()


async def test_when_nothing_comes_the_origin_is_asked_for_what_comes_from_above(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of the cohort do so for theirs: it costs one copy, and not one for each of them."""
    running, job = await begin(scene)
    job.is_open = False
    monkeypatch.setattr(rules, "NO_PROGRESS_S", 0.3)
    await until(lambda: bool(job.wanted), "the origin is asked")
    assert set(job.wanted) <= scene.of("n0")
    assert all(not running._links[name].expected for name in ABOVE)
    assert running._links["n1"].expected == scene.of("n1")
    await until(lambda: not running._links["n1"].expected, "the next time, for all")
    await running.leave()


async def test_deep_cohorts_are_patient() -> None:
    """Pieces come whole from cohort to cohort, so that the first ones take longer."""
    movement = Movement(100.0)
    assert movement.is_stalled(100.1 + NO_PROGRESS_S * 1e9)
    assert not movement.is_stalled(100.0 + 1.5e9, 2)
    assert movement.is_stalled(100.0 + 1.5e9, 1)


async def test_who_stops_above_is_relieved(scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with the others above only; before there was time for anything nobody is slow."""
    running, _job = await begin(scene)
    await scene.expects(**{name: fed_by(scene, name) for name in ABOVE})
    for name in ABOVE[1:]:
        size = len(fed_by(scene, name)) * PIECE_SIZE_BYTES
        scene.move(name, size, size)
        for piece in fed_by(scene, name):
            scene.send(name, piece)
    monkeypatch.setattr(rules, "PATIENCE_S", PATIENCE_S)
    started = running._pace.started
    assert [link.name for link in running._pace.slow(started + PATIENCE_S / 2)] == []
    assert [link.name for link in running._pace.slow(started + 60)] == [ABOVE[0]]
    running._pace.stood_still(started + 60, 60)
    assert running._pace.slow(started + 60) == [], "that minute says nothing"
    assert [link.name for link in running._pace.slow(started + 120)] == [ABOVE[0]]
    await running.leave()


@pytest.mark.parametrize("level", [2, 3])
async def test_who_may_have_been_lied_to_is_no_liar_for_ever(scene: ExchangeScene, level: int) -> None:
    """A member of the root speaks for itself. Either brings nothing more of this digest."""
    scene.level = level
    running, _job = await begin(scene)
    running.accuse("a0", "it lied")
    assert scene.connection("a0").is_told_to_end
    assert scene.liars == ({"a0"} if level == 2 else set())
    await running.leave()


async def test_a_seal_is_passed_on_as_far_as_its_signer_is_known() -> None:
    """To this cohort as it came; to one below, which does not know the one above, under this node's name. A seal of
    this cohort goes as it is to both."""
    keys = {name: NodeKey(name.encode().ljust(32, b"-")) for name in ("n0", "n1", "a0", "b0")}
    members: dict[str, tuple[bytes, ...]] = {name: (key.public,) for name, key in keys.items()}
    order = Serve(
        digest=DIGEST,
        members=members,
        homes=(),
        sizes=(2 * PIECE_SIZE_BYTES,),
        paths=("x",),
        above=("a0",),
        below=("b0",),
    )
    shelf = Shelf(order, "n0", keys["n0"])
    hashed = blake3(b"a piece").digest()
    for piece, signer in enumerate(("a0", "n1")):
        signature = keys[signer].sign(seal_to_sign(DIGEST, piece, PIECE_SIZE_BYTES, hashed))
        shelf.have(Have(digest=DIGEST, piece=piece, blake3=hashed, signer=signer, signature=signature))
    for piece, client, expected in (
        (0, "n1", "a0"),
        (0, "b0", "n0"),
        (0, "n1", "a0"),
        (1, "n1", "n1"),
        (1, "b0", "n1"),
    ):
        seal = shelf.seal(piece, client)
        assert seal is not None
        assert seal.signer == expected
        signed = seal_to_sign(DIGEST, piece, PIECE_SIZE_BYTES, hashed)
        assert is_signed(signed, seal.signature, members[expected])
