"""A file some of whose pieces came from others: what is fetched again when it is wrong, and who is named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import cast

import msgspec
import pytest

from cacheagent import sharing
from cacheagent.errors import ChecksumMismatch
from cacheagent.location import HttpLocation, Location
from cacheagent.model import Checksum, FileHashes
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
        for index, blake3 in enumerate(self.pieces):
            on_piece(index, "right" if share is None else blake3, 1, "fetched" if share is None else "peer")
        return FileHashes(pieces=("right",) * len(self.pieces))

    async def fetch_piece(self, order: BlobOrder, index: int, locate: Locate) -> str:
        self.checked.append(index)
        return "right"


class Exchange:
    """A BlobShare. `vouched`: who said what."""

    def __init__(self, vouched: dict[int, tuple[str, str]]) -> None:
        self.vouched = vouched
        self.accused: list[str] = []
        self.here: dict[int, str] = {}
        self.others = 1

    def begin(self, sink: PieceSink, missing: object) -> None:
        pass

    def came(self, index: int, length: int) -> None:
        pass

    async def end(self) -> None:
        pass

    def have(self, index: int, blake3: str) -> None:
        self.here[index] = blake3

    def sender_of(self, index: int, blake3: str) -> str:
        name, said = self.vouched.get(index, ("", ""))
        return name if said == blake3 else ""

    def lose(self) -> None:
        self.here.clear()

    def is_first_check(self) -> bool:
        return False

    def accuse(self, name: str, what: str) -> None:
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
