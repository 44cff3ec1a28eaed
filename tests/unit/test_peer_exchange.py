"""Which piece is asked of whom while others stop, lie, leave and come back; and who may write where."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cacheagent.errors import TargetAbandoned
from cacheagent.model import PIECE_SIZE_BYTES, Checksum
from cacheagent.peers import exchange, link, rules
from cacheagent.peers.exchange import Exchange
from cacheagent.peers.orders import Adopt, EndKind, Have
from cacheagent.peers.protocol import pack_set
from cacheagent.peers.rules import PROGRESS_BYTES
from cacheagent.peers.share import BlobShare
from cacheagent.peers.standing import MOST_FAULTS, MOST_FRUITLESS
from tests.fakes.peer_exchange import DIGEST, ExchangeScene, FakeJob, hash_of
from tests.fakes.running import until

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks of milliseconds. Nobody is given up, or looked for on a list, unless a test says so."""
    monkeypatch.setattr(exchange, "TICK_S", 0.005)
    monkeypatch.setattr(exchange, "ANSWERS_WITHIN_S", 0.005)
    monkeypatch.setattr(exchange, "RETRY_S", (0.01,))
    monkeypatch.setattr(exchange, "OUT_AFTER_S", 1e9)
    monkeypatch.setattr(exchange, "LOOK_TICKS", 1)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[ExchangeScene]:
    """Two nodes and a file of eight pieces."""
    with ExchangeScene(tmp_path / "cache") as made:
        yield made


async def some_turns() -> None:
    """Whatever could happen without waiting has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


def ask_to_adopt(pieces: set[int]) -> Adopt:
    """The member asks for its own pieces: it does not get them itself."""
    return Adopt(digest=DIGEST, client="n1", pieces=pack_set(pieces))


async def test_a_member_that_says_nothing_yet_is_counted_on(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process, or this node's receiver, may be starting: its pieces go to the origin when the connection fails."""
    monkeypatch.setattr(exchange, "OUT_AFTER_S", 0.0)
    running = await scene.start()
    job, _share = scene.begin(running)
    await until(lambda: set(job.wanted) == scene.of("n0"), "this node's own pieces come meanwhile")
    ticks = running._ticks
    await until(lambda: running._ticks > ticks + 3, "it could have been given up")
    assert set(job.wanted) == scene.of("n0")
    assert not scene.receiving.releases
    scene.end("n1", "connect")
    await until(lambda: scene.of("n1").issubset(job.wanted), "the rest")
    assert len(job.wanted) == len(set(job.wanted))
    await running.leave()


async def test_a_connected_member_that_is_given_up_lets_go_first(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been told what to send and has never answered: its pieces go to the origin when it writes them no more."""
    monkeypatch.setattr(exchange, "OUT_AFTER_S", 0.0)
    scene.receiving.hold = True
    running = await scene.start()
    job, _share = scene.begin(running)
    scene.greet("n1")
    theirs = scene.of("n1")
    assert theirs
    assert scene.connection("n1").expected == theirs
    await until(lambda: scene.receiving.releases, "it is asked to let go")
    await until(lambda: set(job.wanted) == scene.of("n0"), "this node's own pieces come meanwhile")
    await some_turns()
    assert theirs.isdisjoint(job.wanted)
    (released, answer) = scene.receiving.releases[0]
    assert released == theirs
    answer.set_result(None)
    await until(lambda: theirs.issubset(job.wanted), "the rest")
    assert len(job.wanted) == len(set(job.wanted))
    await running.leave()


async def test_a_file_ends_when_nobody_writes_it(scene: ExchangeScene) -> None:
    """Also while a piece of it is on its way from one member to another."""
    running, job, share = await moving(scene)
    ended = asyncio.create_task(share.end())
    await some_turns()
    assert not ended.done()
    scene.receiving.releases[0][1].set_result(None)
    await until(lambda: len(scene.receiving.releases) == 2, "the rest of what the member owes is released too")
    await some_turns()
    assert not ended.done()
    scene.receiving.releases[1][1].set_result(None)
    await ended
    assert scene.of("n1").isdisjoint(job.wanted), "what was on the move when the file ended goes nowhere"
    await running.leave()


async def test_a_file_that_somebody_may_write_for_ever_is_given_up(scene: ExchangeScene) -> None:
    """Its end says why. A release that is answered does no such thing (see above)."""
    running, job, share = await moving(scene)
    ended = asyncio.create_task(share.end())
    scene.receiving.releases[0][1].set_exception(TargetAbandoned("it hangs"))
    await until(lambda: len(scene.receiving.releases) == 2, "the rest is released")
    scene.receiving.releases[1][1].set_result(None)
    with pytest.raises(TargetAbandoned, match="it hangs"):
        await ended
    assert scene.of("n1").isdisjoint(job.wanted)
    await running.leave()


async def test_a_release_that_fails_ends_the_job(scene: ExchangeScene) -> None:
    """And does not leave its pieces in nobody's hands."""
    running, job, share = await moving(scene)
    scene.receiving.hold = False
    scene.receiving.releases[0][1].set_exception(TargetAbandoned("it hangs"))
    await until(lambda: isinstance(job.failure, TargetAbandoned), "the job hears of it")
    with pytest.raises(TargetAbandoned):
        await share.end()
    assert scene.of("n1").isdisjoint(job.wanted)
    await running.leave()


@pytest.mark.parametrize("kind", ["stuck", "reset"])
async def test_nobody_writes_where_a_stuck_receiver_may(scene: ExchangeScene, kind: EndKind) -> None:
    """What was expected of it is not asked of anybody again. A process that is dead is no hindrance."""
    running = await scene.start()
    job, share = scene.begin(running)
    scene.let_in("n1")
    scene.end("n1", kind)
    await called(scene, 2)
    if kind == "stuck":
        assert isinstance(job.failure, TargetAbandoned)
        assert scene.greet("n1").wants == b""
        with pytest.raises(TargetAbandoned):
            await share.end()
        assert scene.of("n1").isdisjoint(job.wanted)
    else:
        assert scene.greet("n1").wants == pack_set(scene.of("n1"))
        await share.end()
        assert job.failure is None
    await running.leave()


@pytest.mark.parametrize("useful", [0, PROGRESS_BYTES])
async def test_bytes_that_nobody_wants_keep_no_download_waiting(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch, useful: int
) -> None:
    """However many a member sends: what it owes comes from the origin. Wanted ones are worth waiting for."""
    monkeypatch.setattr(rules, "NO_PROGRESS_S", 0.2)
    running = await scene.start()
    job, _share = scene.begin(running)
    scene.let_in("n1", complete=True)

    def flood_until_all_is_asked() -> bool:
        scene.move("n1", PROGRESS_BYTES, useful)
        return scene.of("n1").issubset(job.wanted)

    if useful:
        for _ in range(50):
            assert not flood_until_all_is_asked()
            await asyncio.sleep(0.01)
    else:
        await until(flood_until_all_is_asked, "the origin is asked, and not the same member again")
    await running.leave()


@pytest.mark.parametrize("kind", ["mismatch", "forged", "protocol"])
async def test_a_member_whose_seals_are_wrong_is_left_out(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch, kind: EndKind
) -> None:
    """After the third time, each of which is counted, however long its connections lasted, and what it owes comes from
    the origin."""
    monkeypatch.setattr(link, "STEADY_S", -1.0)
    running = await scene.start()
    job, _share = scene.begin(running)
    owed = scene.of("n1")
    for count in range(1, MOST_FAULTS + 1):
        await called(scene, count)
        scene.let_in("n1")
        scene.send("n1", owed.pop())
        scene.end("n1", kind)
    await until(lambda: set(job.wanted) == scene.of("n0") | owed, "the rest is asked of the origin")
    await asyncio.sleep(0.05)
    assert len(scene.receiving.connections["n1"]) == MOST_FAULTS
    assert scene.observer.faults == [kind] * MOST_FAULTS
    await running.leave()


async def test_who_did_not_say_who_it_is_is_not_at_fault(scene: ExchangeScene) -> None:
    """Somebody else may have a member's old address. With another one on the list, what is there is left at once."""
    running = await scene.start()
    for count in range(1, MOST_FAULTS + 2):
        await called(scene, count)
        scene.end("n1", "protocol")
    assert not scene.observer.faults
    await called(scene, MOST_FAULTS + 2)
    scene.listed["n1"] = msgspec.structs.replace(scene.listed["n1"], address="elsewhere:7411")
    await until(lambda: scene.connection("n1").is_told_to_end, "the old address is left")
    scene.end("n1", "closed")
    await called(scene, MOST_FAULTS + 3)
    scene.let_in("n1")
    assert running._links["n1"].is_up
    await running.leave()


async def test_what_a_member_owes_is_counted_as_it_changes(scene: ExchangeScene) -> None:
    """In bytes: of what is wanted, twice or once, less what came and what it is to bring no more."""
    running = await scene.start()
    _job, share = scene.begin(running)
    scene.let_in("n1")
    link = running._links["n1"]
    mine = sorted(scene.of("n1"))
    assert link.owed == len(mine) * PIECE_SIZE_BYTES
    link.want(mine)
    assert link.owed == len(mine) * PIECE_SIZE_BYTES
    scene.send("n1", mine[0])
    assert link.owed == (len(mine) - 1) * PIECE_SIZE_BYTES
    link.let_go(mine[:2])
    assert link.owed == (len(mine) - 2) * PIECE_SIZE_BYTES
    await share.end()
    assert (link.owed, link.expected) == (0, set())
    await running.leave()


async def test_connections_that_break_and_bring_nothing_are_not_waited_for(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However steady each was: after a few, others are asked; the member is tried again all the same."""
    monkeypatch.setattr(link, "STEADY_S", -1.0)
    running = await scene.start()
    job, _share = scene.begin(running)
    for count in range(1, MOST_FRUITLESS + 1):
        await called(scene, count)
        assert scene.of("n1").isdisjoint(job.wanted)
        scene.let_in("n1")
        scene.end("n1")
    assert not scene.observer.faults
    await called(scene, MOST_FRUITLESS + 1)
    assert scene.greet("n1").wants == b""
    await until(lambda: set(job.wanted) == set(range(8)), "the rest is asked of the origin")
    await running.leave()


async def test_who_leaves_the_list_of_one_version_may_come_back(scene: ExchangeScene) -> None:
    """It is left for this version only; what it owed comes from elsewhere. A liar does not come back."""
    running = await scene.start()
    job, _share = scene.begin(running)
    scene.let_in("n1")
    left = scene.listed.pop("n1")
    await until(lambda: scene.connection("n1").is_told_to_end, "it brings nothing more")
    scene.end("n1", "closed")
    await until(lambda: set(job.wanted) == set(range(8)), "the rest is asked of the origin")
    await asyncio.sleep(0.05)
    assert len(scene.receiving.connections["n1"]) == 1
    assert not scene.liars
    scene.listed["n1"] = left
    await called(scene, 2)
    scene.let_in("n1")
    running.accuse("n1", "it lied")
    assert scene.connection("n1").is_told_to_end
    assert "n1" not in scene.receiving.keys, "and its seals are good no more, whoever hands them on"
    scene.end("n1", "closed")
    await asyncio.sleep(0.05)
    assert len(scene.receiving.connections["n1"]) == 2
    await running.leave()


async def test_who_asks_before_there_are_homes_asks_nobody(scene: ExchangeScene) -> None:
    """It means the exchange before this one, whose list the server still has."""
    running = scene.make()
    running.adopt(ask_to_adopt({0, 1}))
    assert not running._placement._adopted
    running = await scene.start()
    running.adopt(ask_to_adopt({0, 1}))
    assert running._placement._adopted == {0, 1}
    await running.leave()


async def test_who_has_a_part_serves_that_part(tmp_path: Path) -> None:
    """Of what this node is the home of, it asks each member for what that one has, and the origin for the rest."""
    with ExchangeScene(tmp_path / "cache", ("n0", "n1", "n2"), (30,)) as scene:
        running = await scene.start()
        job, _share = scene.begin(running)
        first, second, *rest = sorted(scene.of("n0"))
        scene.let_in("n1", have={first, *scene.of("n2")})
        scene.let_in("n2", have={second})
        await until(lambda: set(job.wanted) == set(rest), "the origin is asked for what nobody has")
        assert running._links["n1"].expected == scene.of("n1") | {first}
        assert running._links["n2"].expected == scene.of("n2") | {second}
        await running.leave()


async def test_who_has_nearly_all_does_not_serve_nearly_all(tmp_path: Path) -> None:
    """One of eight: of what a node is the home of it is asked for a half, as four of them fetch, and the origin for the
    rest."""
    names = tuple(f"n{number}" for number in range(8))
    with ExchangeScene(tmp_path / "cache", names, (160,)) as scene:
        running = await scene.start()
        job, _share = scene.begin(running)
        mine = scene.of("n0")
        scene.let_in("n1", have=range(159))
        for name in names[2:]:
            scene.let_in(name)
        await until(lambda: len(job.wanted) == len(mine) // 2, "the origin is asked for half")
        assert len(running._links["n1"].expected - scene.of("n1")) == len(mine) - len(mine) // 2
        assert scene.of("n0") == set(job.wanted) | (running._links["n1"].expected - scene.of("n1"))
        await running.leave()


@pytest.mark.parametrize("brought", [0, 4 * PIECE_SIZE_BYTES])
async def test_a_home_has_seconds_to_fill_the_link_that_own_pieces_leave(scene: ExchangeScene, brought: int) -> None:
    """Until then the origin had it. Who brings nothing in those seconds is slow, who brings something is not."""
    running = await scene.start()
    running._pace.started -= 60
    job, _share = scene.begin(running)
    scene.let_in("n1")
    running._links["n1"].relieved_at -= 60
    await until(lambda: running._placement.here >= scene.of("n0"), "this node's own pieces are here")
    await until(lambda: running._pace._own_since < math.inf, "that was seen")
    scene.move("n1", brought, brought)

    def slow(seconds: float) -> list[str]:
        return [each.name for each in running._pace.slow(running._pace._own_since + seconds)]

    assert slow(link.RATE_WINDOW_S - 0.1) == []
    assert slow(link.RATE_WINDOW_S + 0.1) == ([] if brought else ["n1"])
    assert scene.of("n1").isdisjoint(job.wanted)
    await running.leave()


@pytest.mark.parametrize("is_there", [True, False])
async def test_who_would_follow_a_slow_home_asks_the_one_after_it_first(tmp_path: Path, *, is_there: bool) -> None:
    """That one most likely has the piece: the origin is asked only if it does not bring it either. In place of a home
    that is dead this node brings its part at once."""
    with ExchangeScene(tmp_path / "cache", ("n0", "n1", "n2", "n3"), (40,)) as scene:
        running = await scene.start()
        job, _share = scene.begin(running)
        for name in ("n1", "n2", "n3"):
            scene.let_in(name)
        await until(lambda: set(job.wanted) == scene.of("n0"), "this node's own pieces")
        owed = scene.of("n1")
        mine = {piece for piece in owed if scene.zones.next_near(piece, lambda name: name != "n1") == "n0"}
        assert mine
        assert {piece for piece in owed if scene.zones.second_near(piece)} == mine
        slow = running._links["n1"]
        running._placement.move(slow, owed) if is_there else running._placement.give_up(slow)
        await until(lambda: not slow.expected & owed, "they are asked of others")
        await until(lambda: owed <= _asked(running, "n2", "n3") | set(job.wanted), "all of them")
        assert set(job.wanted) & owed == (set() if is_there else mine)
        running._placement.move(running._links["n2"], mine)
        running._placement.move(running._links["n3"], mine)
        await until(lambda: set(job.wanted) & owed == mine, "the origin is asked")
        await running.leave()


def _asked(running: Exchange, *names: str) -> set[int]:
    return {piece for name in names for piece in running._links[name].expected}


async def test_a_liar_is_left_in_every_exchange(scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in those that run already, before they look at lists again."""
    monkeypatch.setattr(exchange, "LOOK_TICKS", 1_000_000)
    first = await scene.start()
    second = await scene.start("sha256:" + "cd" * 32)
    assert len(scene.receiving.connections["n1"]) == 2
    first.accuse("n1", "it lied")
    await until(lambda: all(each.is_told_to_end for each in scene.receiving.connections["n1"]), "both are ended")
    await first.leave()
    await second.leave()


async def test_a_seal_of_a_stranger_costs_the_piece_and_not_the_member(scene: ExchangeScene) -> None:
    """Who hands on what somebody said who has left is asked for the rest all the same."""
    running = await scene.start()
    job, _share = scene.begin(running)
    scene.let_in("n1")
    piece, *rest = sorted(scene.of("n1"))
    scene.send_unproved("n1", piece, "n9")
    await until(lambda: piece in job.wanted, "the origin is asked")
    assert set(rest).isdisjoint(job.wanted)
    assert not scene.connection("n1").is_told_to_end
    await running.leave()


async def test_who_vouched_is_remembered_over_a_restart(scene: ExchangeScene) -> None:
    """What came from others goes on under their names, what is something else now under this node's."""
    running = await scene.start()
    scene.begin(running)
    scene.let_in("n1")
    first, second, *_ = sorted(scene.of("n1"))
    scene.send("n1", first)
    scene.send("n1", second)
    await running.leave()
    again = await scene.start()
    scene.service.haves.clear()
    again.have(first, hash_of(first), is_own=False)
    again.have(second, hash_of(99), is_own=False)
    kept, other = scene.service.haves
    assert (kept.signer, kept.blake3) == ("n1", bytes.fromhex(hash_of(first)))
    assert other == Have(digest=DIGEST, piece=second, blake3=bytes.fromhex(hash_of(99)))
    assert (again.sender_of(first, hash_of(first)), again.sender_of(second, hash_of(99))) == ("n1", "")
    await again.leave()


async def test_what_a_liar_vouched_for_is_given_to_nobody_and_told_once(tmp_path: Path) -> None:
    """But for what the origin gave since, what it said of other bytes, and what others vouch for. Of a file whose hash
    the origin gives all is served on. Before it lied nothing was doubted."""
    with ExchangeScene(tmp_path / "cache", ("n0", "n1", "n2"), (30, 30)) as scene:
        running = await scene.start()
        _job, share = scene.begin(running)
        scene.let_in("n1")
        wrong, again, other, theirs, *_ = sorted(piece for piece in scene.of("n1") if piece < 30)
        for piece in (wrong, again, other):
            scene.send("n1", piece)
        scene.send("n1", theirs, signer="n2")
        proved = max(scene.of("n1"))
        blob, proved_blob = scene.blobs
        running.share(scene.order(proved_blob, Checksum(algorithm="sha256", value="00")))
        scene.send("n1", proved)
        assert not running.take_doubted(blob)
        running.accuse("n1", "it lied")
        assert scene.service.lost == {wrong, again, other}
        assert share.is_doubted(wrong, hash_of(wrong))
        assert not share.is_doubted(wrong, hash_of(99))
        assert not share.is_doubted(theirs, hash_of(theirs))
        share.have(again, hash_of(again), is_own=True)
        assert not share.is_doubted(again, hash_of(again))
        assert running.take_doubted(blob) == {wrong: hash_of(wrong), other: hash_of(other)}
        assert scene.service.lost >= set(range(30))
        assert not running.take_doubted(blob)
        running.accuse("n1", "it lied again")
        assert scene.observer.lies == 1
        await running.leave()


async def called(scene: ExchangeScene, times: int) -> None:
    """The other member, so often in all."""
    await until(lambda: len(scene.receiving.connections["n1"]) == times, "it is called")


async def moving(scene: ExchangeScene) -> tuple[Exchange, FakeJob, BlobShare]:
    """One piece of a member is being moved."""
    scene.receiving.hold = True
    running = await scene.start()
    job, share = scene.begin(running)
    scene.let_in("n1")
    running.adopt(ask_to_adopt({min(scene.of("n1"))}))
    await until(lambda: scene.receiving.releases, "it is asked to let go")
    return running, job, share


async def test_a_member_that_does_not_speak_as_this_node_is_not_waited_for(
    scene: ExchangeScene, caplog: pytest.LogCaptureFixture
) -> None:
    """TLS on one side only: the rest is asked of the origin at once, and the log says why. One whose certificate is of
    another key, as when it has a new one that was not heard of yet, is counted on for a while."""
    running = await scene.start()
    job, _share = scene.begin(running)
    scene.end("n1", "key")
    await called(scene, 2)
    assert scene.of("n1").isdisjoint(job.wanted)
    scene.end("n1", "tls")
    await until(lambda: set(job.wanted) == set(range(8)), "the rest is asked of the origin")
    assert caplog.messages.count("a peer is no help") == 2
    await running.leave()


async def test_a_member_of_another_version_is_not_waited_for(
    scene: ExchangeScene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that speaks none of ours: it is told nothing, and what it owes is asked of the origin at once. It is tried
    again, and is counted on when its agent is another one."""
    monkeypatch.setattr(exchange, "TICK_S", 1e9)  # nothing comes of waiting
    running = await scene.start()
    job, _share = scene.begin(running)
    scene.take("n1", 2, 3)
    assert scene.connection("n1").is_told_to_end
    assert not scene.connection("n1").asks
    scene.end("n1", "closed")
    await until(lambda: set(job.wanted) == set(range(8)), "the rest is asked of the origin")
    assert caplog.messages.count("a peer is no help") == 1
    await called(scene, 2)
    scene.take("n1", 1, 2)
    assert len(scene.connection("n1").asks) == 1
    await running.leave()
