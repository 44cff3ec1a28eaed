"""A file some of whose pieces came from others: what is fetched again when it is wrong, and who is named."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import cast

import msgspec
import pytest

from cacheagent import sharing
from cacheagent.errors import ChecksumMismatch, OriginUnavailable
from cacheagent.location import HttpLocation, Location
from cacheagent.model import NO_BLAKE3, Checksum, FileHashes
from cacheagent.progress import PieceOrigin
from cacheagent.sharing import fetch_shared
from cacheagent.transfer.base import BlobOrder, Locate, OnPiece, PieceSink, Share, Transport

pytestmark = pytest.mark.asyncio
RIGHT = ("right 0", "right 1", "right 2")
ORDER = BlobOrder(
    blob_id="b", size_bytes=3, target="/t", source_kind="https", checksums=(Checksum(algorithm="sha256", value="00"),)
)


class Origin:
    """A Transport of a file whose hash agrees if none of its pieces is called wrong; CRCs agree with what is forged.

    `first`: what a first try finds, and from where. `has`: what comes when the origin alone is asked. `tries`: for
    which pieces it was, each time; `claimed`: what was to be kept the last time. `failures`: by the number of such a
    try, of which one piece comes (none with `is_mute`), or 0 for the first one, of which all does. `shown`: what others
    are given, which is nothing while something is wrong."""

    def __init__(self, first: dict[int, tuple[str, PieceOrigin]], has: Sequence[str] = RIGHT) -> None:
        self.first = first
        self.has = has
        self.claimed: dict[int, str] = {}
        self.tries: list[set[int]] = []
        self.failures: dict[int, BaseException] = {}
        self.is_mute = False
        self.is_wrong = False
        self.shown: dict[int, str] = {}
        self.checked: list[int] = []

    async def fetch(
        self, order: BlobOrder, locate: Locate, on_piece: OnPiece, share: Share | None = None
    ) -> FileHashes:
        found = self.first
        if share is None:
            assert not self.shown
            self.claimed = order.claimed
            self.tries.append(set(range(len(self.has))) - order.claimed.keys())
            found = {index: (blake3, "fetched") for index, blake3 in enumerate(self.has)}
            found |= {index: (blake3, "kept") for index, blake3 in order.claimed.items()}
            if failure := self.failures.get(len(self.tries)):
                for index in [] if self.is_mute else sorted(self.tries[-1])[:1]:
                    on_piece(index, self.has[index], 1, "fetched")
                raise failure
        for index, (blake3, origin) in found.items():
            on_piece(index, blake3, 1, origin)
        if share is not None and 0 in self.failures:
            raise self.failures[0]
        self.is_wrong = any(blake3.startswith("wrong") for blake3, _ in found.values())
        if self.is_wrong:
            raise ChecksumMismatch("it is not what the origin says")
        return FileHashes(pieces=tuple(found[index][0] for index in range(len(self.has))))

    async def fetch_piece(self, order: BlobOrder, index: int, locate: Locate) -> str:
        assert not (self.is_wrong and self.shown)
        self.checked.append(index)
        return self.has[index]


class Sampled(Origin):
    """Where nothing but chance finds what a member altered: pieces come from it, and one at a time may be asked of the
    origin again. `checked`: which were."""

    def __init__(self, wrong: int, right: int) -> None:
        super().__init__({}, ["right"] * (wrong + right))
        self.pieces = ["wrong"] * wrong + ["right"] * right

    async def fetch(
        self, order: BlobOrder, locate: Locate, on_piece: OnPiece, share: Share | None = None
    ) -> FileHashes:
        self.claimed = order.claimed
        for index, blake3 in enumerate(self.pieces):
            if share is not None:
                on_piece(index, blake3, 1, "peer")
            elif index in order.claimed:
                on_piece(index, order.claimed[index], 1, "kept")
            else:
                on_piece(index, "right", 1, "fetched")
        return FileHashes(pieces=("right",) * len(self.pieces))


class Away(Sampled):
    """Of what is fetched again one piece comes, and no more. `failure`: why."""

    def __init__(self, wrong: int, right: int, failure: BaseException) -> None:
        super().__init__(wrong, right)
        self.failure = failure

    async def fetch(
        self, order: BlobOrder, locate: Locate, on_piece: OnPiece, share: Share | None = None
    ) -> FileHashes:
        if share is None:
            on_piece(len(self.pieces) - 1, "right", 1, "fetched")
            raise self.failure
        return await super().fetch(order, locate, on_piece, share)


class Exchange:
    """A BlobShare. `vouched`: who said what. `liars`: who lied about something else."""

    def __init__(self, vouched: dict[int, tuple[str, str]], liars: Collection[str] = ()) -> None:
        self.vouched = vouched
        self.liars = set(liars)
        self.accused: list[str] = []
        self.own: set[int] = set()
        self.is_first = False
        self.here: dict[int, str] = {}
        self.others = 1

    def begin(self, sink: PieceSink, missing: object) -> None:
        pass

    def came(self, index: int, length: int) -> None:
        pass

    async def end(self) -> None:
        pass

    def have(self, index: int, blake3: str, *, is_own: bool) -> None:
        self.here[index] = blake3
        if is_own:
            self.own.add(index)

    def sender_of(self, index: int, blake3: str) -> str:
        name, said = self.vouched.get(index, ("", ""))
        return name if said == blake3 else ""

    def is_doubted(self, index: int, blake3: str) -> bool:
        return self.sender_of(index, blake3) in self.liars

    def lose(self) -> None:
        self.here.clear()

    def is_first_check(self) -> bool:
        first, self.is_first = self.is_first, False
        return first

    def accuse(self, name: str, what: str) -> None:
        if name not in self.liars:
            self.liars.add(name)
            self.accused.append(name)


async def locate() -> Location:
    return HttpLocation(url="http://origin/f")


async def test_what_was_kept_of_others_is_not_believed_either() -> None:
    """An agent was restarted in the middle: what a liar had given it before is fetched again, and the liar named. What
    came from the origin is kept, and who was right is not accused."""
    first: dict[int, tuple[str, PieceOrigin]] = {0: ("right 0", "kept"), 1: ("wrong 1", "kept"), 2: ("right 2", "peer")}
    origin, share = Origin(first), Exchange({1: ("liar", "wrong 1"), 2: ("honest", "right 2")})
    found: dict[int, str] = {}

    def on_piece(index: int, blake3: str, length: int, origin: PieceOrigin) -> None:
        found[index] = blake3

    hashes = await fetch_shared(cast("Transport", origin), ORDER, locate, on_piece, share)
    assert hashes.pieces == RIGHT
    assert origin.claimed == {0: "right 0"}
    assert share.accused == ["liar"]
    assert found == share.here == dict(enumerate(RIGHT))


async def test_who_said_something_else_is_not_named() -> None:
    """What lies there now came from elsewhere, whatever a node said of an earlier try."""
    first: dict[int, tuple[str, PieceOrigin]] = {index: (f"wrong {index}", "kept") for index in range(3)}
    origin, share = Origin(first), Exchange({1: ("honest", "older 1")})
    with pytest.raises(ChecksumMismatch):
        await fetch_shared(cast("Transport", origin), ORDER, locate, lambda *_: None, share)
    assert origin.tries == []
    assert share.accused == []


@pytest.fixture
def weak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobOrder:
    """A file that nothing speaks for; what is checked needs no disk, and chance checks nothing."""
    monkeypatch.setattr(sharing, "make_scratch", lambda *_: None)
    monkeypatch.setattr(sharing, "remove_scratch", lambda *_: None)
    monkeypatch.setattr(sharing, "SPOT_CHECKED", 0)
    return msgspec.structs.replace(ORDER, checksums=(), target=str(tmp_path / "t"))


class File:
    """Four pieces came from the origin and four from each member, in turns. `altered`: what members made of some."""

    def __init__(self, *members: str, altered: dict[int, str] | None = None, liars: Collection[str] = ()) -> None:
        self.right = [f"right {index}" for index in range(4 * (len(members) + 1))]
        self.given = {index: (altered or {}).get(index, blake3) for index, blake3 in enumerate(self.right)}
        self.pieces = {
            name: range(number, len(self.right), len(members) + 1) for number, name in enumerate(["", *members])
        }
        first: dict[int, tuple[str, PieceOrigin]] = {index: (blake3, "peer") for index, blake3 in self.given.items()}
        first |= {index: (first[index][0], "fetched") for index in self.pieces[""]}
        vouched = {index: (name, self.given[index]) for name in members for index in self.pieces[name]}
        self.origin = Origin(first, self.right)
        self.share = Exchange(vouched, liars)
        self.origin.shown = self.share.here
        self.journal: dict[int, str] = {}

    async def fetch(self, order: BlobOrder = ORDER) -> FileHashes:
        def on_piece(index: int, blake3: str, *_: object) -> None:
            self.journal[index] = blake3

        return await fetch_shared(cast("Transport", self.origin), order, locate, on_piece, self.share)

    def of(self, *members: str) -> set[int]:
        return {index for name in members for index in self.pieces[name]}

    def require_right(self) -> None:
        """On disk, in the journal and to the others; what came from the origin is known to."""
        assert self.journal == self.share.here == dict(enumerate(self.right))
        assert self.share.own == self.of("").union(*self.origin.tries)


def all_of(*numbers: int, of: int, how: str = "wrong") -> dict[int, str]:
    """What these members altered, each of which gave every piece of its number, among so many."""
    return {index: f"{how} {index}" for number in numbers for index in range(number, 4 * of, of)}


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Which of each member's pieces is compared."""

    def choose(which: int) -> None:
        def choice(pieces: Sequence[int]) -> int:
            return sorted(pieces)[which]

        monkeypatch.setattr(random, "choice", choice)

    choose(0)
    return choose


async def test_who_altered_all_costs_one_piece_of_each_and_its_own() -> None:
    """Whichever pieces are compared."""
    file = File("a", "liar", "b", altered=all_of(2, of=4))
    assert await file.fetch() == FileHashes(pieces=tuple(file.right))
    sample, rest = file.origin.tries
    assert [len(sample & file.of(name)) for name in ("", "a", "liar", "b")] == [0, 1, 1, 1]
    assert rest == file.of("liar") - sample
    assert file.share.accused == ["liar"]
    file.require_right()


async def test_a_file_that_agrees_costs_nothing() -> None:
    """The control of all that follows."""
    file = File("a", "liar", "b")
    await file.fetch()
    assert file.origin.tries == []
    assert file.share.accused == []
    file.require_right()


@pytest.mark.parametrize("is_known", [True, False])
async def test_what_known_liars_gave_comes_first(*, is_known: bool) -> None:
    """Nothing of others is fetched then, and nobody is named once more."""
    file = File("a", "liar", altered=all_of(2, of=3), liars=["liar"] if is_known else [])
    await file.fetch()
    assert (file.origin.tries == [file.of("liar")]) is is_known
    assert file.share.accused == ([] if is_known else ["liar"])
    file.require_right()


@pytest.mark.parametrize("is_met", [True, False])
async def test_a_single_altered_piece_is_found_by_chance_or_dearly(
    sampled: Callable[[int], None], *, is_met: bool
) -> None:
    """If the sample misses it, all the rest that came from others is fetched. The liar is named in both cases; the hash
    proves what else it gave."""
    file = File("a", "liar", altered={11: "wrong 11"})
    sampled(-1 if is_met else 0)
    await file.fetch()
    assert file.origin.tries == ([{10, 11}] if is_met else [{1, 2}, file.of("a", "liar") - {1, 2}])
    assert file.share.accused == ["liar"]
    file.require_right()


@pytest.mark.parametrize("liars", [[], ["liar"]], ids=["nobody lied", "one had lied elsewhere"])
async def test_an_origin_that_is_wrong_itself_is_found_out_in_the_end(liars: list[str]) -> None:
    """No piece is asked for twice, also of one who lied elsewhere, and nobody is named."""
    file = File("a", "liar", altered={0: "wrong 0", 2: "wrong 2"}, liars=liars)
    file.origin.has = file.right = list(file.given.values())
    with pytest.raises(ChecksumMismatch):
        await file.fetch()
    sizes = [len(pieces) for pieces in file.origin.tries]
    assert sizes == ([4, 1, 3] if liars else [2, 6])
    assert set.union(*file.origin.tries) == file.of("a", "liar")
    assert file.share.accused == []
    assert not file.share.here


async def test_an_origin_that_lets_nothing_be_fetched_again_is_not_asked_for_ever(
    sampled: Callable[[int], None],
) -> None:
    """It says at once that all is wrong, each time; what was to come is claimed by no later try."""
    file = File("a", "liar", altered=all_of(2, of=3), liars=["liar"])
    file.origin.failures, file.origin.is_mute = dict.fromkeys(range(1, 100), ChecksumMismatch("wrong")), True
    with pytest.raises(ChecksumMismatch):
        await file.fetch()
    assert file.origin.tries == [file.of("liar"), file.of("liar") | {1}, file.of("liar", "a")]


@pytest.mark.parametrize("altered", [all_of(1, 3, of=4), {**all_of(1, of=4), 15: "wrong 15"}], ids=["all", "one"])
async def test_two_liars(sampled: Callable[[int], None], altered: dict[int, str]) -> None:
    """Two that altered much are named together; one that altered little costs what it would have alone."""
    file = File("liar", "a", "other liar", altered=altered)
    await file.fetch()
    liars, sample = file.of("liar", "other liar"), {1, 2, 3}
    if len(altered) == 8:
        assert file.origin.tries == [sample, liars - sample]
    else:
        assert file.origin.tries == [sample, file.of("liar") - sample, file.of("a", "other liar") - sample]
    assert file.share.accused == ["liar", "other liar"]
    file.require_right()


@pytest.mark.parametrize("is_weak", [True, False])
async def test_what_a_liar_forged_is_fetched_though_the_file_agrees_without(
    sampled: Callable[[int], None], weak: BlobOrder, *, is_weak: bool
) -> None:
    """A CRC finds the piece that it altered carelessly, and agrees with the others. A hash of the file proves them."""
    altered = {2: "wrong 2", **({5: "forged 5", 8: "forged 8"} if is_weak else {})}
    file = File("a", "liar", altered=altered)
    await file.fetch(weak if is_weak else ORDER)
    assert file.origin.tries == ([{1, 2}, {5, 8, 11}] if is_weak else [{1, 2}])
    assert file.share.accused == ["liar"]
    file.require_right()


@pytest.mark.parametrize("is_forged", [True, False])
async def test_a_careless_liar_saves_nobody_from_being_checked(weak: BlobOrder, *, is_forged: bool) -> None:
    """The file's CRC does not agree, and says so before the check of another one's piece is done."""
    file = File("forger", "liar", altered={**all_of(2, of=3), **({1: "forged 1", 4: "forged 4"} if is_forged else {})})
    file.share.is_first = True
    await file.fetch(weak)
    assert file.origin.checked == [1]
    assert sorted(file.share.accused) == (["forger", "liar"] if is_forged else ["liar"])
    assert (file.origin.tries[0] == file.of("forger")) is is_forged
    file.require_right()


async def test_of_what_nobody_is_known_to_vouch_for_all_is_fetched(weak: BlobOrder) -> None:
    """If one such piece is wrong. What members vouched for is kept, and nobody is named."""
    file = File("a", "b", altered={1: "forged 1"})
    file.share.vouched = {index: said for index, said in file.share.vouched.items() if said[0] == "b"}
    file.share.is_first = True
    await file.fetch(weak)
    assert file.origin.checked == [1]
    assert file.origin.tries == [file.of("a")]
    assert file.share.accused == []
    file.require_right()


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("failure", [OriginUnavailable("away"), asyncio.CancelledError()], ids=["away", "cancelled"])
async def test_whatever_breaks_off_nothing_of_a_known_liar_is_claimed(
    sampled: Callable[[int], None], weak: BlobOrder, number: int, failure: BaseException
) -> None:
    """First comes what the one gave who had lied elsewhere, then the sample, then what the other one gave. Wherever it
    ends, what came is claimed, what liars gave is not, and the next try brings all of it. A piece had been kept."""
    altered = {**all_of(1, of=4, how="forged"), **all_of(2, of=4)}
    file = File("known", "liar", "a", altered=altered, liars=["known"])
    file.origin.first[1] = ("forged 1", "kept")
    file.origin.failures = {number: failure}
    with pytest.raises(type(failure)):
        await file.fetch(msgspec.structs.replace(weak, claimed={1: "forged 1"}))
    assert file.origin.tries == [file.of("known"), {2, 3}, file.of("liar") - {2}][:number]
    assert file.share.accused == (["liar"] if number >= 2 else [])
    came = {index for index, blake3 in file.journal.items() if blake3 == file.right[index]} - file.of("", "a")
    assert came == [set(), {1}, file.of("known") | {2}, file.of("known") | {2, 6}][number]
    missing = file.of(*file.share.liars) - came
    assert [file.journal[index] for index in missing] == [NO_BLAKE3] * [4, 3, 3, 2][number]

    first: dict[int, tuple[str, PieceOrigin]] = {index: (blake3, "kept") for index, blake3 in file.journal.items()}
    first |= {index: (file.right[index], "fetched") for index, said in file.journal.items() if said == NO_BLAKE3}
    file.origin = Origin(first, file.right)
    file.origin.shown = file.share.here
    await file.fetch(weak)
    assert "liar" in file.share.liars
    assert file.journal == file.share.here == dict(enumerate(file.right))


@pytest.mark.parametrize("name", ["liar", "honest"])
async def test_what_somebody_vouched_for_who_lied_elsewhere_is_fetched_again(weak: BlobOrder, name: str) -> None:
    """Nothing in this file was checked. What another one gave of it is kept, and nobody is named once more; what is
    right of the liar's is this node's own from then on. The control is the same member that has not lied."""
    origin = Sampled(wrong=1, right=2)
    share = Exchange({0: (name, "wrong"), 1: (name, "right"), 2: ("another", "right")}, liars=["liar"])
    journal: dict[int, str] = {}
    hashes = await fetch_shared(
        cast("Transport", origin), weak, locate, lambda index, blake3, *_: journal.update({index: blake3}), share
    )
    assert hashes.pieces == ("right",) * 3
    is_liar = name == "liar"
    assert origin.claimed == ({2: "right"} if is_liar else {})
    assert journal[0] == share.here[0] == ("right" if is_liar else "wrong")
    assert share.own == ({0, 1} if is_liar else set())
    assert share.accused == []


async def test_a_hash_of_the_file_proves_what_a_liar_vouched_for() -> None:
    """Nothing of it is fetched again."""
    origin = Sampled(wrong=0, right=3)
    share = Exchange(dict.fromkeys(range(3), ("liar", "right")), liars=["liar"])
    await fetch_shared(cast("Transport", origin), ORDER, locate, lambda *_: None, share)
    assert len(share.here) == 3
    assert not share.own


@pytest.mark.parametrize("failure", [OriginUnavailable("away"), asyncio.CancelledError()], ids=["away", "cancelled"])
async def test_what_a_liar_gave_is_claimed_no_more_when_the_rest_does_not_come(
    weak: BlobOrder, failure: BaseException
) -> None:
    """The first piece is checked, and what is fetched again breaks off: the liar is named, and the next try, also one
    of another process that knows of no liar, has to fetch what it gave. What others gave it proves and keeps."""
    origin = Away(2, 2, failure)
    share = Exchange({0: ("liar", "wrong"), 1: ("liar", "wrong"), 2: ("honest", "right"), 3: ("honest", "right")})
    share.is_first = True
    journal: dict[int, str] = {}
    with pytest.raises(type(failure)):
        await fetch_shared(
            cast("Transport", origin), weak, locate, lambda index, blake3, *_: journal.update({index: blake3}), share
        )
    assert origin.checked == [0]
    assert share.accused == ["liar"]
    assert journal == {0: NO_BLAKE3, 1: NO_BLAKE3, 2: "right", 3: "right"}


async def test_what_was_found_wrong_is_claimed_no_more_whoever_gave_it(weak: BlobOrder) -> None:
    """Nobody knows any more who vouched for it. An agent that is killed has it in its journal already."""
    share = Exchange({})
    share.is_first = True
    journal: list[tuple[int, str]] = []
    with pytest.raises(OriginUnavailable):
        await fetch_shared(
            cast("Transport", Away(1, 1, OriginUnavailable("away"))),
            weak,
            locate,
            lambda index, blake3, *_: journal.append((index, blake3)),
            share,
        )
    assert dict(journal) == {0: NO_BLAKE3, 1: "right"}
    assert share.accused == []


@pytest.mark.parametrize(("others", "altered"), [(1, 100), (15, 1000)], ids=["N = 2", "N = 16"])
async def test_spot_checks_find_a_liar_as_often_as_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int, altered: int
) -> None:
    """Whoever alters k pieces is named with the probability that the documentation gives, 1 - (1 - 0.01 / (N - 1))^k.
    Who alters none never is, and is checked as often. Seeded, so it comes out alike every time."""
    monkeypatch.setattr(random, "random", random.Random(5).random)
    monkeypatch.setattr(sharing, "make_scratch", lambda *_: None)
    monkeypatch.setattr(sharing, "remove_scratch", lambda *_: None)
    order = msgspec.structs.replace(ORDER, checksums=(), target=str(tmp_path / "t"))
    tries, found, checks = 100, 0, 0
    for wrong in (altered, 0):
        for _ in range(tries):
            origin = Sampled(wrong, altered - wrong)
            share = Exchange(dict.fromkeys(range(altered), ("liar", "wrong")))
            share.others = others
            await fetch_shared(cast("Transport", origin), order, locate, lambda *_: None, share)
            checks += len(origin.checked)
            assert share.accused == (["liar"] if wrong and origin.checked else [])
            found += len(share.accused)
    said = 1 - (1 - 0.01 / others) ** altered
    assert found / tries == pytest.approx(said, abs=3 * (said * (1 - said) / tries) ** 0.5)
    assert checks / (2 * tries) == pytest.approx(altered * 0.01 / others, rel=0.3)
