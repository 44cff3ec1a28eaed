"""One flight per blob: models that share a shard fetch it once, also while the first is still on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol

from cacheagent.checksum import needs_serial
from cacheagent.errors import CacheAgentError, ChecksumMismatch, LocationExpired, SourceChanged, TargetAbandoned
from cacheagent.lanes import in_lanes
from cacheagent.location import Location
from cacheagent.model import SMALL_FILE_BYTES, RemoteFile
from cacheagent.plan import Plan
from cacheagent.progress import PieceOrigin
from cacheagent.sharing import BlobShare, fetch_shared
from cacheagent.source.base import Source
from cacheagent.store import Store
from cacheagent.threads import in_thread
from cacheagent.tracking import Tracker
from cacheagent.transfer.base import BlobOrder, SmallOrder, SmallResult, Transport

BLOBS_AT_ONCE: Final = 32
"""Files of one model in flight. More than any origin wants connections for; few enough that early files finish early
and a dataset of many files does not preallocate them all. Chosen, not measured."""

SHARED_AT_ONCE: Final = 512
"""Large files of one model that nodes exchange at a time, the first ones first; each has a descriptor. All nodes begin
them in the same order: whoever is ahead of the others waits for the first file that it lacks, which everybody else
lacks too, has, or is bringing. Chosen: many, so that a node that is ahead seldom waits."""

SHARE_LOOK_S: Final = 5.0
"""How often it is looked whether more nodes, or fewer, share what may be taken from an origin. Chosen."""

SMALL_AT_ONCE: Final = 2048
"""Small files that are located and ordered together: full batches for 32 connections."""


class Exchange(Protocol):
    """Other nodes that bring the same digest, while this one does."""

    def share(self, order: BlobOrder) -> BlobShare:
        """Of one blob, whose target is there."""

    def take_doubted(self, blob: str) -> dict[int, str]:
        """Pieces of a large blob, index to BLAKE3, for which somebody vouched who has lied since. Each is told once:
        nobody is given it any more, and the caller sees to it."""


class Peers(Protocol):
    """Whom to exchange with."""

    async def join(self, digest: str, plan: Plan) -> Exchange | None:
        """None where there is nobody."""

    def origin_share(self, digest: str) -> int:
        """Bytes a second that this node may take from the origin of a digest, as things are now; 0: no limit."""

    async def leave(self, exchange: Any, *, complete: bool) -> None:
        """Everything is here (`complete`), or the download ended without."""


class BlobFlights:
    """Brings the blobs of plans to this node, each at most once at a time whoever asks. One event loop."""

    def __init__(self, store: Store, transport: Transport, peers: Peers | None = None) -> None:
        self._store = store
        self._transport = transport
        self._peers = peers
        self._flying: dict[str, asyncio.Task[None]] = {}
        self._bringers: dict[str, Tracker] = {}
        """Whose job each of them belongs to."""
        self._plans: dict[Tracker, Plan] = {}
        self._hurried: set[Tracker] = set()
        """Whose limit is lifted, because others wait for what they bring."""
        self._shares: dict[Tracker, int] = {}
        """What a job may take from its origin, because other nodes take from it too; whoever waits for it."""
        self._anew: set[str] = set()
        """Blobs that were here, and counted, and are brought once more."""

    async def bring(self, plan: Plan, source: Source, tracker: Tracker, *, share_as: str = "") -> None:
        """Return when every blob of the plan is on disk and proved. `share_as`: the digest under which other nodes that
        bring the same exchange pieces with this one; empty: everything comes from the source.

        The first failure of a blob that this call fetches is raised, after its other flights have stopped. A blob that
        another call fetches is waited for; if that call fails or is cancelled, this one goes on with what is proved.
        """
        self._plans[tracker] = plan
        looks = self._look_at_share(tracker, share_as)
        try:
            # What another call fetches of it already, it may fetch for less urgent reasons.
            self.raise_priority(tracker)
            self._settle_limits()
            exchange = await self._peers.join(share_as, plan) if self._peers is not None and share_as else None
            if exchange is not None:
                await self._bring_shared(plan, source, tracker, exchange)
            await self._bring_missing(plan, source, tracker)
        finally:
            if looks is not None:
                looks.cancel()
            del self._plans[tracker]
            self._shares.pop(tracker, None)
            self._hurried.discard(tracker)
            self._anew.difference_update(plan.blobs)
            self._settle_limits()

    def raise_priority(self, tracker: Tracker) -> None:
        """Whatever is under way for this job counts at least as much as its tracker says now."""
        plan = self._plans.get(tracker)
        if plan is not None:
            flying = [blob for blob in plan.blobs if blob in self._flying]
            self._transport.raise_priority(flying, tracker.transfer_priority)

    def limit(self, tracker: Tracker) -> None:
        """The limit of this job is another one now, or it is urgent."""
        self._hurried.discard(tracker)
        self._set_cap(tracker)
        self._settle_limits()

    def _look_at_share(self, tracker: Tracker, digest: str) -> asyncio.Task[None] | None:
        if self._peers is None or not digest or not (share := self._peers.origin_share(digest)):
            return None
        self._shares[tracker] = share
        self._set_cap(tracker)
        return asyncio.get_running_loop().create_task(self._follow_share(self._peers, tracker, digest))

    async def _follow_share(self, peers: Peers, tracker: Tracker, digest: str) -> None:
        while True:
            await asyncio.sleep(SHARE_LOOK_S)
            share = peers.origin_share(digest)
            if share != self._shares[tracker]:
                self._shares[tracker] = share
                self._set_cap(tracker)

    def _set_cap(self, tracker: Tracker) -> None:
        """What its warm-up lets it take, unless somebody waits, and its share: the smaller."""
        limit = 0 if tracker in self._hurried else tracker.limit_bytes_per_s
        caps = [cap for cap in (limit, self._shares.get(tracker, 0)) if cap]
        self._transport.set_cap(tracker.cap, min(caps, default=0))

    def _settle_limits(self) -> None:
        """A job that has a limit has none while it brings something that one without a limit waits for."""
        for tracker in self._plans:
            hurry = bool(tracker.limit_bytes_per_s) and self._is_waited_for(tracker)
            if hurry != (tracker in self._hurried):
                self._hurried ^= {tracker}
                self._set_cap(tracker)

    def _is_waited_for(self, tracker: Tracker) -> bool:
        plans = [plan for other, plan in self._plans.items() if other is not tracker and not other.limit_bytes_per_s]
        if not plans:
            return False
        brought = [blob for blob, bringer in self._bringers.items() if bringer is tracker]
        return any(blob in plan.blobs for plan in plans for blob in brought)

    def _priority(self, blobs: Iterable[str]) -> int:
        """Of the most urgent job that wants any of them."""
        wanted = list(blobs)
        return max(
            tracker.transfer_priority
            for tracker, plan in self._plans.items()
            if any(blob in plan.blobs for blob in wanted)
        )

    async def _bring_shared(self, plan: Plan, source: Source, tracker: Tracker, exchange: Exchange) -> None:
        """Many large blobs at once: others bring pieces of any of them at any time."""
        complete = False
        try:
            await self._bring_believed(plan, source, tracker, exchange)
            complete = True
        finally:
            assert self._peers is not None
            await self._peers.leave(exchange, complete=complete)

    async def _bring_believed(self, plan: Plan, source: Source, tracker: Tracker, exchange: Exchange) -> None:
        """Who lied in the last file may have lied in the first one, which had come by then: what such nodes vouched for
        comes from the source alone before anybody sees it, and now or later if this is interrupted."""
        try:
            lanes = BLOBS_AT_ONCE + min(len(plan.large), SHARED_AT_ONCE)
            await self._bring(plan, source, tracker, exchange, lanes=lanes)
        finally:
            doubted = await self._doubt(plan, exchange)
        while doubted:
            await self._bring_missing(plan, source, tracker)
            doubted = await self._doubt(plan, exchange)

    async def _bring_missing(self, plan: Plan, source: Source, tracker: Tracker) -> None:
        """From the source alone. What came a moment ago may be missing again: another call doubts what it shares with
        this one."""
        while (left := plan.renewed(self._store.blob_hashes)).small or left.large:
            await self._bring(left, source, tracker)

    async def _doubt(self, plan: Plan, exchange: Exchange) -> bool:
        """Whether files that had come have to come once more. Those whose hash their origin gives are proved."""
        large = [blob for blob, file in plan.blobs.items() if file.size_bytes >= SMALL_FILE_BYTES]
        weak = [blob for blob in large if not needs_serial(plan.blobs[blob].checksums)]
        doubted = {blob: pieces for blob in weak if (pieces := exchange.take_doubted(blob))}
        anew = {blob for blob, pieces in doubted.items() if await in_thread(partial(self._store.doubt, blob, pieces))}
        self._anew |= anew
        return bool(anew)

    async def _bring(
        self,
        plan: Plan,
        source: Source,
        tracker: Tracker,
        exchange: Exchange | None = None,
        *,
        lanes: int = BLOBS_AT_ONCE,
    ) -> None:
        units = [*_chunks(plan.small, SMALL_AT_ONCE), *((blob,) for blob in plan.large)]

        async def bring_unit(unit: tuple[str, ...]) -> None:
            await self._bring_unit(unit, plan, source, tracker, exchange)

        await in_lanes(units, bring_unit, lanes=lanes)

    async def _bring_unit(
        self, unit: tuple[str, ...], plan: Plan, source: Source, tracker: Tracker, exchange: Exchange | None
    ) -> None:
        waited_for: set[str] = set()
        while missing := [blob for blob in unit if self._store.blob_hashes(blob) is None]:
            mine = [blob for blob in missing if blob not in self._flying]
            if not mine:
                waited_for.update(missing)
                await asyncio.wait({self._flying[blob] for blob in missing})
                continue
            waited_for.difference_update(mine)
            await self._fly({blob: plan.blobs[blob] for blob in mine}, source, tracker, exchange)
        tracker.linked(sum(plan.blobs[blob].size_bytes for blob in waited_for))

    async def _fly(
        self, files: dict[str, RemoteFile], source: Source, tracker: Tracker, exchange: Exchange | None
    ) -> None:
        if any(file.size_bytes >= SMALL_FILE_BYTES for file in files.values()):
            ((blob, file),) = files.items()
            flight = asyncio.create_task(self._fetch_large(blob, file, source, tracker, exchange))
        else:
            flight = asyncio.create_task(self._fetch_small(files, source, tracker))
        self._flying.update(dict.fromkeys(files, flight))
        self._bringers.update(dict.fromkeys(files, tracker))
        self._settle_limits()
        try:
            await flight
        finally:
            for blob in files:
                del self._flying[blob], self._bringers[blob]
            self._settle_limits()

    async def _fetch_large(
        self, blob: str, file: RemoteFile, source: Source, tracker: Tracker, exchange: Exchange | None
    ) -> None:
        staged = await in_thread(partial(self._store.stage, blob, file.size_bytes))

        def on_piece(index: int, blake3: str, length: int, origin: PieceOrigin) -> None:
            staged.append(index, blake3)
            tracker.piece(0 if blob in self._anew else length, origin)

        async def locate() -> Location:
            return (await source.locate([file]))[0]

        order = BlobOrder(
            blob_id=blob,
            size_bytes=file.size_bytes,
            target=str(staged.path),
            source_kind=source.kind,
            claimed=staged.claimed,
            checksums=file.checksums,
            priority=self._priority([blob]),
            cap=tracker.cap,
        )
        try:
            if exchange is None:
                hashes = await self._transport.fetch(order, locate, on_piece)
            else:
                hashes = await fetch_shared(self._transport, order, locate, on_piece, exchange.share(order))
            if not file.checksums:  # a server may have written to the file while it answered: is it still the one?
                await source.describe([file])
        except BaseException as error:
            _name(error, file.path)
            if _is_worthless(error):
                await in_thread(staged.discard)
            raise
        await in_thread(partial(staged.verified, hashes))

    async def _fetch_small(self, files: dict[str, RemoteFile], source: Source, tracker: Tracker) -> None:
        kept = await in_thread(partial(self._store.prove_small, list(files)))
        tracker.kept(sum(files[blob].size_bytes for blob in kept))
        left = {blob: file for blob, file in files.items() if blob not in kept}

        def on_done(results: Sequence[SmallResult]) -> None:
            done = [(result.blob_id, left[result.blob_id].size_bytes, result.hashes) for result in results]
            self._store.small_done(done)
            for blob, _, _ in done:
                del left[blob]
            tracker.fetched(sum(size for _, size, _ in done))

        while left:
            before = len(left)
            locations = await source.locate(list(left.values()))
            orders = [
                SmallOrder(
                    blob_id=blob,
                    size_bytes=file.size_bytes,
                    target=self._store.small_path(blob),
                    location=location,
                    checksums=file.checksums,
                )
                for (blob, file), location in zip(left.items(), locations, strict=True)
            ]
            try:
                await self._transport.fetch_small(
                    orders, source.kind, on_done, priority=self._priority(left), cap=tracker.cap
                )
            except LocationExpired:
                if len(left) == before:  # fresh locations brought nothing: more of them will not either
                    raise


def _chunks(items: Iterable[str], size: int) -> Iterable[tuple[str, ...]]:
    iterator = iter(items)
    while chunk := tuple(islice(iterator, size)):
        yield chunk


def _name(error: BaseException, path: str) -> None:
    """People know a file by its path. What the workers name, where it comes from, may be a hash (the Hub's storage)."""
    if isinstance(error, CacheAgentError) and path not in error.message:
        error.message = f"{path}: {error.message}"


def _is_worthless(error: BaseException) -> bool:
    """Whether nothing of what arrived may be kept: nobody can say which piece is wrong, or they are of an object that
    is no more, or a worker that hangs may still write (then the error, or the cause of a cancellation, says so)."""
    return isinstance(error, ChecksumMismatch | SourceChanged | TargetAbandoned) or isinstance(
        error.__cause__, TargetAbandoned
    )
