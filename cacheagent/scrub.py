"""Scrub: everything at rest is read again from time to time, and a piece that went bad is fetched and written anew.

Paced, because nobody waits for it: it reads for at most one twentieth of the time, and no faster than it is told. What
it finds wrong takes no new volumes until it is whole again; those who have it mounted see it heal, since the bytes are
restored in the same inode.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Never

from cacheagent.errors import CacheAgentError, CorruptModel, DiskFault, ModelInUse, NotCached, TransferFailed
from cacheagent.model import Value, piece_count, piece_range
from cacheagent.store import Store
from cacheagent.threads import in_thread
from cacheagent.transfer.base import Transport

LOG: Final = logging.getLogger(__name__)

PIECES_AT_ONCE: Final = 4
"""Read between two pauses: 64 MiB, 20-60 ms of an NVMe's time. Chosen."""

LOOK_EVERY_S: Final = 600.0
"""How often it is looked what is due, and how soon a repair is tried again that the origin was away for. Chosen."""

SAVE_EVERY_S: Final = 60.0
"""How much of the scrub's own progress a crash may cost. Chosen."""

Refetch = Callable[[str, int], Awaitable[bytes]]
"""Fetch one piece (blob, index) from its origin. Raises what sources and transfers raise."""


class ScrubPolicy(Value):
    """`period_s`: every blob is read once in this time; 0 is never. `busy_fraction`: of the time, so about of the
    disk's bandwidth, that is spent reading. `bytes_per_s`: the most that is read in a second; 0 is no limit. Chosen.
    """

    period_s: float = 7 * 86400.0
    busy_fraction: float = 0.05
    bytes_per_s: float = 0.0


@dataclass
class ScrubCounts:
    """Since this process began; for metrics."""

    bytes_read: int = 0
    pieces_wrong: int = 0
    pieces_repaired: int = 0
    blobs_lost: int = 0


class Scrub:
    """The scrub of one store. One event loop. A root task of the agent: `run` never ends by itself."""

    def __init__(
        self,
        store: Store,
        transport: Transport,
        refetch: Refetch,
        policy: ScrubPolicy,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.counts = ScrubCounts()
        self._store = store
        self._transport = transport
        self._refetch = refetch
        self._policy = policy
        self._now = now
        self._sleep = sleep
        self._wrong: set[str] = set()
        self._read_at = store.scrubbed()
        self._saved_at = now()

    async def run(self) -> Never:
        """Look again and again what is due. Cancelling it loses nothing but the place in one blob."""
        while True:
            period_s = self._policy.period_s
            if period_s > 0:
                await self.scrub_due()
            await self._sleep(min(LOOK_EVERY_S, period_s) if period_s > 0 else LOOK_EVERY_S)

    def progress(self) -> float:
        """The part of what is published that was read within the last period, by number of blobs; 1 for an empty
        store."""
        published = self._store.published_blobs()
        return 1 - len(self._due()) / len(published) if published else 1.0

    async def scrub_due(self) -> None:
        """Read every blob whose time has come, those of withdrawn versions first, then the one that was read longest
        ago; repair what is wrong. Raises DiskFault when the disk can't be written."""
        withdrawn = {blob for digest in self._withdrawn() for blob in self._store.blobs_of(digest)}
        self._wrong |= withdrawn  # until it is known which of them are
        try:
            for blob in [*sorted(withdrawn), *(blob for blob in self._due() if blob not in withdrawn)]:
                await self.scrub_blob(blob)
                if self._now() - self._saved_at > SAVE_EVERY_S:
                    await self._save()
        finally:
            await self._save()

    async def scrub_blob(self, blob: str) -> bool:
        """Read one blob and repair it if need be; False if it is wrong and stays so. One that was evicted is fine."""
        try:
            wrong = await self._wrong_pieces(blob)
            if wrong and not await self._mend(blob, wrong):
                return False
            self._wrong.discard(blob)
            await self._reinstate(blob)
        except NotCached:
            self._wrong.discard(blob)
            return True
        self._read_at[blob] = self._now()
        return True

    def _withdrawn(self) -> list[str]:
        return [record.digest for record in self._store.records() if record.suspect]

    def _due(self) -> list[str]:
        published = self._store.published_blobs()
        read_at = {blob: max(at, self._read_at.get(blob, 0.0)) for blob, at in published.items()}
        # A clock that was set back must not put everything off: what was read in the future is due.
        now, period = self._now(), self._policy.period_s
        due = [blob for blob, at in read_at.items() if not now - period < at <= now]
        return sorted(due, key=read_at.__getitem__)

    async def _save(self) -> None:
        there = self._store.published_blobs()
        self._read_at = {blob: at for blob, at in self._read_at.items() if blob in there}
        self._saved_at = self._now()
        await in_thread(partial(self._store.set_scrubbed, self._read_at))

    async def _wrong_pieces(self, blob: str) -> list[int]:
        """Raises NotCached."""
        recorded = self._store.blob_hashes(blob)
        size = self._store.blob_size(blob)
        assert recorded is not None, "a published blob has hashes"
        wrong = []
        indexes = range(piece_count(size))
        for first in range(0, len(indexes), PIECES_AT_ONCE):
            batch = indexes[first : first + PIECES_AT_ONCE]
            started = time.monotonic()
            found = await self._read(blob, size, batch)
            wrong += [index for index in batch if found.get(index) != recorded.pieces[index]]
            await self._pause(sum(piece_range(size, index)[1] for index in batch), time.monotonic() - started)
        if wrong:
            self._store.blob_size(blob)  # evicted meanwhile: then what was read means nothing
        return wrong

    async def _read(self, blob: str, size: int, indexes: Sequence[int]) -> dict[int, str]:
        """Hashes of what is there; a piece that can't be read has none."""
        path = str(self._store.blob_path(blob))
        try:
            return await self._transport.rehash(path, size, indexes)
        except DiskFault as error:
            if len(indexes) == 1:
                LOG.warning("a piece can't be read", extra={"blob": blob, "piece": indexes[0], "reason": str(error)})
                return {}
        return {key: name for index in indexes for key, name in (await self._read(blob, size, [index])).items()}

    async def _pause(self, read_bytes: int, took_s: float) -> None:
        self.counts.bytes_read += read_bytes
        by_share = took_s / self._policy.busy_fraction - took_s
        by_rate = read_bytes / self._policy.bytes_per_s - took_s if self._policy.bytes_per_s else 0.0
        await self._sleep(max(by_share, by_rate))

    async def _mend(self, blob: str, wrong: list[int]) -> bool:
        self.counts.pieces_wrong += len(wrong)
        self._wrong.add(blob)
        digests = self._store.versions_of(blob)
        LOG.error("bytes at rest are wrong", extra={"blob": blob, "pieces": wrong, "versions": digests})
        reason = f"{len(wrong)} of its pieces on this disk went bad and are being fetched again"
        for digest in digests:
            await in_thread(partial(self._store.withdraw, digest, reason))
        try:
            for index in wrong:
                data = await self._refetch(blob, index)
                await in_thread(partial(self._store.repair_piece, blob, index, data))
            await self._prove(blob, wrong)
        except NotCached:
            raise
        except TransferFailed as error:
            LOG.warning("a repair waits for the origin", extra={"blob": blob, "reason": str(error)})
            return False
        except CacheAgentError as error:
            await self._give_up(blob, digests, error)
            return False
        self.counts.pieces_repaired += len(wrong)
        LOG.warning("bytes at rest were repaired", extra={"blob": blob, "pieces": wrong, "versions": digests})
        return True

    async def _prove(self, blob: str, indexes: list[int]) -> None:
        recorded = self._store.blob_hashes(blob)
        found = await self._read(blob, self._store.blob_size(blob), indexes)
        for index in indexes:
            if recorded is None or found.get(index) != recorded.pieces[index]:
                raise CorruptModel(
                    f"piece {index} of blob {blob} is wrong again after it was written anew", hint="replace the disk"
                )

    async def _reinstate(self, blob: str) -> None:
        """This blob is whole; so are its versions if none of their others is wrong. Raises NotCached."""
        withdrawn = set(self._withdrawn())
        for digest in withdrawn.intersection(self._store.versions_of(blob)):
            if self._wrong.isdisjoint(self._store.blobs_of(digest)):
                await in_thread(partial(self._store.reinstate, digest))

    async def _give_up(self, blob: str, digests: Sequence[str], error: CacheAgentError) -> None:
        """Its bytes can't be had again: a copy for the operator; the versions go as soon as nobody has them mounted."""
        self.counts.blobs_lost += 1
        copy = await in_thread(partial(self._store.quarantine, blob))
        LOG.error("a blob can't be repaired", extra={"blob": blob, "reason": str(error), "copy": str(copy or "none")})
        for digest in digests:
            try:
                await in_thread(partial(self._store.evict, digest))
            except ModelInUse as in_use:
                LOG.warning("a wrong version stays for now", extra={"digest": digest, "reason": str(in_use)})
