"""A file some of whose pieces came from others: what is fetched again when it is wrong, and who is named."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection
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
    """A Transport: what a first try finds does not agree; the second has what is right."""

    def __init__(self, first: dict[int, tuple[str, PieceOrigin]]) -> None:
        self.first = first
        self.claimed: dict[int, str] = {}

    async def fetch(
        self, order: BlobOrder, locate: Locate, on_piece: OnPiece, share: Share | None = None
    ) -> FileHashes:
        if share is not None:
            for index, (blake3, origin) in self.first.items():
                on_piece(index, blake3, 1, origin)
            raise ChecksumMismatch("it is not what the origin says")
        self.claimed = order.claimed
        for index, blake3 in enumerate(RIGHT):
            on_piece(index, blake3, 1, "kept" if index in order.claimed else "fetched")
        return FileHashes(pieces=RIGHT)


class Sampled(Origin):
    """Where nothing but chance finds what a member altered: pieces come from it, and one at a time may be asked of the
    origin again. `checked`: which were."""

    def __init__(self, wrong: int, right: int) -> None:
        super().__init__({})
        self.pieces = ["wrong"] * wrong + ["right"] * right
        self.checked: list[int] = []

    async def fetch(
        self, order: BlobOrder, locate: Locate, on_piece: OnPiece, share: Share | None = None
    ) -> FileHashes:
        self.claimed = order.claimed
        for index, blake3 in enumerate(self.pieces):
            on_piece(index, "right" if share is None else blake3, 1, "fetched" if share is None else "peer")
        return FileHashes(pieces=("right",) * len(self.pieces))

    async def fetch_piece(self, order: BlobOrder, index: int, locate: Locate) -> str:
        self.checked.append(index)
        return "right"


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
    first: dict[int, tuple[str, PieceOrigin]] = {index: (f"right {index}", "kept") for index in range(3)}
    origin, share = Origin(first), Exchange({1: ("honest", "older 1")})
    with pytest.raises(ChecksumMismatch):
        await fetch_shared(cast("Transport", origin), ORDER, locate, lambda *_: None, share)
    assert share.accused == []


@pytest.fixture
def weak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobOrder:
    """A file that nothing speaks for; what is checked needs no disk, and chance checks nothing."""
    monkeypatch.setattr(sharing, "make_scratch", lambda *_: None)
    monkeypatch.setattr(sharing, "remove_scratch", lambda *_: None)
    monkeypatch.setattr(sharing, "SPOT_CHECKED", 0)
    return msgspec.structs.replace(ORDER, checksums=(), target=str(tmp_path / "t"))


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
