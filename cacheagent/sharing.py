"""A large file some of whose pieces came from other nodes: who is believed, how far, and who is found out.

Where the origin gives a hash of the whole file (SHA-256, SHA-1), nothing wrong passes: if it does not agree, pieces of
others are fetched again from the origin, and those that differ name who vouched for them. First that is what members
vouched for who are known to have lied; where there are none, one piece of each member, which finds out who altered
much; where that is not enough, everything that came from others. Each time the file is judged again, and no piece is
fetched again twice. CRCs find accidents, not malice: where there is nothing better, each node fetches the first piece
of each model that came from others again from the origin, and all nodes together one in a hundred of the rest, and
compares, while other pieces still travel. Who is found out, in whatever way, may have altered others that agree with
their CRCs too: whatever it vouched for is fetched again, and is not believed by a later try either.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Collection
from functools import partial
from typing import Final, Protocol

import msgspec

from cacheagent.checksum import needs_serial
from cacheagent.errors import ChecksumMismatch
from cacheagent.model import NO_BLAKE3, FileHashes
from cacheagent.progress import PieceOrigin
from cacheagent.threads import in_thread
from cacheagent.transfer.base import BlobOrder, Locate, OnPiece, Share, Transport
from cacheagent.transfer.race import SCRATCH_SUFFIX, make_scratch, remove_scratch

SPOT_CHECKED: Final = 0.01
"""Share of the pieces that are fetched a second time, by one of the nodes that get them from others, where only CRCs,
or nothing, vouch for a file."""
SPOT_SUFFIX: Final = f"{SCRATCH_SUFFIX}spot-"
"""A hedge's scratch file by its name, so that one that a crash leaves is removed with those."""


class BlobShare(Share, Protocol):
    """Who brings which piece of one blob of an exchange, and who vouches for it."""

    def have(self, index: int, blake3: str, *, is_own: bool) -> None:
        """A piece is on disk and proved, from wherever; `is_own`: from the origin, whoever vouched for it before."""

    def sender_of(self, index: int, blake3: str) -> str:
        """Who vouched that a piece is this; empty for the origin."""

    def is_doubted(self, index: int, blake3: str) -> bool:
        """Whether somebody vouched that a piece is this who has lied since, about whatever it was."""

    def lose(self) -> None:
        """Nothing of it is given to others any more: something in it is wrong."""

    @property
    def others(self) -> int:
        """How many other nodes bring it, each of which checks its part."""

    def is_first_check(self) -> bool:
        """True once for each model: whatever chance says, one piece is checked."""

    def accuse(self, name: str, what: str) -> None:
        """This node vouched for bytes that the origin does not have. The first time counts."""


async def fetch_shared(
    transport: Transport, order: BlobOrder, locate: Locate, on_piece: OnPiece, share: BlobShare
) -> FileHashes:
    """Bring one blob with others' help. Raises as `Transport.fetch`."""
    call = _SharedFetch(transport, order, locate, on_piece, share)
    try:
        return await call.fetch_and_judge()
    except BaseException:
        await call.drop_checks()
        call.disbelieve()
        raise


class _SharedFetch:
    def __init__(
        self, transport: Transport, order: BlobOrder, locate: Locate, on_piece: OnPiece, share: BlobShare
    ) -> None:
        self.from_others: dict[int, str] = {}
        """Index to BLAKE3 of the pieces that are here as they came from other nodes."""
        self._own: dict[int, str] = {}
        """Of all other pieces that are here."""
        self._asked: dict[int, str] = {}
        """What others gave of pieces that are being fetched again."""
        self._again: set[int] = set()
        """Those that have come."""
        self._compared: set[str] = set()
        """Members of whom a piece was fetched again to find out who lies."""
        self._somebody_lied = False
        """And nobody knows who: of what was wrong it is not known who vouched for it."""
        self._why = "another node lied"
        self._transport = transport
        self._order = order
        self._locate = locate
        self._on_piece = on_piece
        self._share = share
        self._checks: set[asyncio.Task[None]] = set()
        self._is_weak = not needs_serial(order.checksums)

    async def fetch_and_judge(self) -> FileHashes:
        """With others' help, and what may be wrong once more without it. It ends: each time there is less that came
        from others, and when there is nothing more and the file is still wrong, the origin is."""
        hashes = await self._judged(self._transport.fetch(self._order, self._locate, self._take, self._share))
        await asyncio.gather(*self._checks)
        while suspects := self._suspects(is_right=hashes is not None):
            hashes = await self._judged(self._fetch_again(suspects))
        assert hashes is not None
        if self._again:  # they were given to nobody meanwhile
            for index, blake3 in enumerate(hashes.pieces):
                self._share.have(index, blake3, is_own=index in self._again)
        return hashes

    async def drop_checks(self) -> None:
        """Returns when none runs."""
        for check in self._checks:
            check.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)

    def disbelieve(self) -> None:
        """If the file does not come, its next try fetches what liars vouched for, also if it knows of none any more."""
        if not self._is_weak:
            return  # the origin's hash proves them, or nothing of the file is believed
        known = {**self._order.claimed, **self._asked, **self.from_others}
        for index in known.keys() - self._own.keys():
            if self._is_doubted(index, known[index]):
                self._on_piece(index, NO_BLAKE3, 0, "kept")

    async def _judged(self, fetch: Awaitable[FileHashes]) -> FileHashes | None:
        """None where the file is not what the origin says, and others may be to blame."""
        try:
            return await fetch
        except ChecksumMismatch as error:
            if not self.from_others:
                raise
            self._why = error.message
            self._share.lose()
            return None

    def _suspects(self, *, is_right: bool) -> list[int]:
        """What is to be fetched again next. Nothing of a file that its origin's hash proves, whoever gave it."""
        of_liars = [index for index, blake3 in self.from_others.items() if self._is_doubted(index, blake3)]
        if is_right:
            return of_liars if self._is_weak else []
        return of_liars or self._sample() or list(self.from_others)

    def _sample(self) -> list[int]:
        """One piece of each who vouched for some, once; nobody can foresee which."""
        pieces: dict[str, list[int]] = {}
        for index, blake3 in self.from_others.items():
            pieces.setdefault(self._share.sender_of(index, blake3), []).append(index)
        sample = [random.choice(some) for name, some in pieces.items() if name not in self._compared]
        self._compared.update(pieces)
        return sample

    def _is_doubted(self, index: int, blake3: str) -> bool:
        if self._share.is_doubted(index, blake3):
            return True
        return self._somebody_lied and not self._share.sender_of(index, blake3)

    async def _fetch_again(self, pieces: Collection[int]) -> FileHashes:
        """These, from the origin alone. What is claimed of the others is read back, so that all of it is judged."""
        self._share.lose()
        for index in pieces:
            self._asked[index] = self.from_others.pop(index)
        plain = msgspec.structs.replace(self._order, claimed={**self.from_others, **self._own})
        return await self._transport.fetch(plain, self._locate, self._take_again)

    def _take_again(self, index: int, blake3: str, length: int, origin: PieceOrigin) -> None:
        if origin == "kept":
            return  # as it was claimed
        self._on_piece(index, blake3, 0, "kept")  # it was counted when it first came
        given = self._asked.pop(index, "") or self.from_others.pop(index, "")
        self._own[index] = blake3
        self._again.add(index)
        if given not in {"", blake3}:
            self._accuse(index, given, self._why)

    def _accuse(self, index: int, blake3: str, why: str) -> None:
        if name := self._share.sender_of(index, blake3):
            self._share.accuse(name, why)
        else:
            self._somebody_lied = True

    def _take(self, index: int, blake3: str, length: int, origin: PieceOrigin) -> None:
        self._on_piece(index, blake3, length, origin)
        self._share.have(index, blake3, is_own=origin == "fetched")
        # What an agent kept of before its restart may have come from others, too.
        if origin == "fetched" or (origin == "kept" and not self._share.sender_of(index, blake3)):
            self.from_others.pop(index, None)  # the disk has lost it before the file's hash was computed
            self._own[index] = blake3
            return
        self.from_others[index] = blake3
        chance = SPOT_CHECKED / max(1, self._share.others)
        if self._is_weak and (self._share.is_first_check() or random.random() < chance):
            self._checks.add(asyncio.get_running_loop().create_task(self._check(index, blake3), name="spot check"))

    async def _check(self, index: int, blake3: str) -> None:
        """Raises what the origin answers."""
        scratch = f"{self._order.target}{SPOT_SUFFIX}{index}"
        await in_thread(partial(make_scratch, scratch, self._order.size_bytes))
        try:
            order = msgspec.structs.replace(self._order, target=scratch, claimed={})
            right = await self._transport.fetch_piece(order, index, self._locate)
        finally:
            await in_thread(partial(remove_scratch, scratch))
        if right != blake3:
            self._on_piece(index, NO_BLAKE3, 0, "kept")  # whatever happens from now on
            self._accuse(
                index, blake3, f"piece {index} of {os.path.basename(self._order.target)} is not what the origin has"
            )
            self.disbelieve()
