"""The Transport that moves real bytes: a pool of worker processes, driven from the event loop.

The loop gives orders and counts; it never touches weight bytes. How it works: docs/design.md, "The data plane".
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, Final, Self

from cacheagent.checksum import check_bytes, needs_serial
from cacheagent.errors import TransferFailed
from cacheagent.location import Location, PathLocation
from cacheagent.model import FileHashes
from cacheagent.progress import PieceOrigin
from cacheagent.threads import in_thread
from cacheagent.transfer.base import BlobOrder, Locate, OnPiece, OnSmall, Share, SmallOrder
from cacheagent.transfer.blob import Pieces
from cacheagent.transfer.caps import Cap, Caps
from cacheagent.transfer.child import argv_of
from cacheagent.transfer.concurrency import FixedLimit
from cacheagent.transfer.config import TransferConfig
from cacheagent.transfer.group import WorkerGroup
from cacheagent.transfer.job import Job, Setting, first_abandoned
from cacheagent.transfer.observer import TransferObserver
from cacheagent.transfer.orders import PieceHash
from cacheagent.transfer.origin import Origin, make_limit
from cacheagent.transfer.process import Launch, Worker
from cacheagent.transfer.race import remove_scratch_files
from cacheagent.transfer.rate import SharedRate
from cacheagent.transfer.rehash import AtRest, RehashJob
from cacheagent.transfer.remote_file import FollowJob, PieceJob, StreamJob
from cacheagent.transfer.small_files import SmallCall, SmallJob
from cacheagent.transfer.whereabouts import HTTP_GROUP, Located, display_name, group_key, origin_key, read_mountinfo

__all__ = ["TransferConfig", "TransferObserver", "WorkerPool"]

WORKER: Final = argv_of("cacheagent.transfer.worker")
MOST_SLOTS: Final = 1024
"""Workers at a time, over all groups: 64 bytes of shared memory each. A node mounts fewer file systems than that."""
READERS_PER_WORKER: Final = 2
"""Re-hashing what is on disk: two readers per CPU keep a disk busy. Chosen."""
FOLLOWED_PER_WORKER: Final = 2
"""Files that are hashed as their pieces come, the first ones first. They wait most of the time, each for the slowest
member. Chosen: with one the hash of the last files began when all was there (`benchmarks/fanout`, 16 nodes)."""
IDLE_MOUNT_S: Final = 60.0
"""Workers of a mounted file system that nobody reads from leave; those for HTTP stay. Chosen."""
LEAVE_WITHIN_S: Final = 0.9
"""At close, before a worker is killed; with the second that SIGKILL may take, close ends within two."""

AnyJob = Job[Any]


class WorkerPool:
    """Implements `cacheagent.transfer.base.Transport`. An async context manager; used on one event loop.

    Inside `async with`, workers for HTTP run already; those for a mounted file system start when it is first asked for.
    `worker_argv` is how a worker is started (tests script their own).
    """

    def __init__(
        self,
        config: TransferConfig | None = None,
        *,
        observer: TransferObserver | None = None,
        worker_argv: Sequence[str] = WORKER,
    ) -> None:
        self.config: Final = config or TransferConfig()
        self._setting = Setting(config=self.config, observer=observer or TransferObserver())
        self._argv = worker_argv
        self._groups: dict[str, WorkerGroup] = {}
        self._disks: dict[str, Origin] = {}
        self._following: dict[WorkerGroup, Origin] = {}
        self._origins: dict[str, Origin] = {}
        self._outcomes: set[asyncio.Future[None]] = set()
        self._slots = count()
        self._lent: set[int] = set()
        self._shared: SharedRate | None = None
        self._caps: Caps | None = None
        self._urgency: dict[str, int] = {}
        """Of the blobs that are brought now: what their priority was raised to meanwhile."""

    async def __aenter__(self) -> Self:
        self._shared = SharedRate.create(MOST_SLOTS, self.config.ingress_cap_bytes_per_s)
        self._caps = Caps(self._shared)
        self._group(HTTP_GROUP).start_workers(ahead=True)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def running_workers(self) -> int:
        """Processes that take orders now."""
        return sum(not worker.is_ending for group in self._groups.values() for worker in group.workers)

    @property
    def connections_in_use(self) -> int:
        """To all origins, mounted file systems included."""
        return sum(origin.in_flight for origin in self._origins.values())

    @property
    def received_bytes(self) -> int:
        """Off the network and mounted sources since the pool was opened, hedges and repeated pieces included."""
        shared = self._shared
        return sum(map(shared.received_bytes, range(MOST_SLOTS))) if shared is not None else 0

    def lend(self) -> tuple[SharedRate, int]:
        """The workers' memory, and a line in it for a process of somebody else: it keeps the cap of everything too, and
        what it receives is counted."""
        self._require_open()
        assert self._shared is not None
        slot = self._free_slot()
        self._lent.add(slot)
        return self._shared, slot

    async def fetch(
        self, order: BlobOrder, locate: Locate, on_piece: OnPiece, share: Share | None = None
    ) -> FileHashes:
        """See Transport. `on_piece` may raise: its error ends the fetch and is raised.

        Raises TargetAbandoned, or CancelledError with a TargetAbandoned as its cause, when a hung worker may still
        write into the target, which must then be discarded.
        """
        if order.size_bytes == 0:
            return FileHashes(pieces=(), verified_by=check_bytes(order.target, order.checksums, b""))
        caps = self._require_open()
        pieces = Pieces(order, on_piece)
        with self._known((order.blob_id,)), caps.use(order.cap) as cap:
            asked_at = asyncio.get_running_loop().time()
            located = Located(location=await locate(), asked_at=asked_at)
            await in_thread(partial(remove_scratch_files, order.target))
            whole: dict[str, str] = {}
            is_serial = needs_serial(order.checksums)
            if share is not None or not is_serial:
                whole = await self._piece_by_piece(located, locate, pieces, cap, share)
            if is_serial and not whole:  # what is here by now, from whomever, is read back and put through the hash
                whole = await self._stream(located, locate, pieces, self._new_outcome(), cap)
        return await in_thread(partial(pieces.judge, display_name(located.location), whole))

    async def fetch_piece(self, order: BlobOrder, index: int, locate: Locate) -> str:
        """Bring one piece to its place in the target, which has the whole file's size, and return its BLAKE3. Nobody's
        checksum covers it: the caller knows what it should be. Raises as `fetch`."""
        self._require_open()
        asked_at = asyncio.get_running_loop().time()
        located = Located(location=await locate(), asked_at=asked_at)
        outcome = self._new_outcome()
        group, origin, _ = self._place(located.location)
        pieces = Pieces(order, _nobody_listens, only=index)
        job = PieceJob(self._setting, origin, located, pieces, outcome)
        job.relocate_with(locate)
        job.want([index])
        await self._carry_out(group, [job], outcome)
        return pieces.proved()[index]

    async def fetch_small(
        self, orders: Sequence[SmallOrder], source_kind: str, on_done: OnSmall, *, priority: int = 0, cap: str = ""
    ) -> None:
        """See Transport."""
        mountinfo = read_mountinfo() if any(isinstance(order.location, PathLocation) for order in orders) else ""
        at_origin: dict[str, list[SmallOrder]] = defaultdict(list)
        for order in orders:
            at_origin[origin_key(order.location, mountinfo)].append(order)
        with self._known([order.blob_id for order in orders]):
            for key, some in at_origin.items():
                caps = self._require_open()
                call = SmallCall(orders=some, source_kind=source_kind, priority=priority, on_done=on_done)
                outcome = self._new_outcome()
                job = SmallJob(self._setting, self._origin(key), call, outcome)
                with caps.use(cap) as job.cap:
                    await self._carry_out(self._group(group_key(some[0].location, key)), [job], outcome)

    def raise_priority(self, blobs: Collection[str], priority: int) -> None:
        """See Transport."""
        for blob in self._urgency.keys() & blobs:
            self._urgency[blob] = max(self._urgency[blob], priority)
        for group in self._groups.values():
            group.raise_priority(blobs, priority)

    def set_cap(self, name: str, bytes_per_s: int) -> None:
        """See Transport."""
        if self._shared is None or self._caps is None:
            return
        self._caps.set(name, bytes_per_s)
        for group in self._groups.values():
            group.pump()

    async def rehash(self, target: str, size_bytes: int, indexes: Sequence[int]) -> dict[int, str]:
        """See Transport."""
        self._require_open()
        if not indexes:
            return {}
        found: dict[int, str] = {}
        outcome = self._new_outcome()

        def on_pieces(pieces: Sequence[PieceHash]) -> None:
            found.update((piece.index, piece.blake3) for piece in pieces)
            if len(found) == len(set(indexes)) and not outcome.done():
                outcome.set_result(None)

        at_rest = AtRest(target=target, size_bytes=size_bytes, indexes=indexes, on_pieces=on_pieces)
        job = RehashJob(self._setting, self._disk(HTTP_GROUP), at_rest, outcome)
        await self._carry_out(self._group(HTTP_GROUP), [job], outcome)
        return found

    async def close(self) -> None:
        """See Transport. What is still asked for fails with TransferFailed. May be called twice."""
        if self._shared is None:
            return
        shared, self._shared = self._shared, None
        for outcome in self._outcomes:
            if not outcome.done():
                outcome.set_exception(_closed())
        workers = [worker for group in self._groups.values() for worker in group.close()]
        for worker in workers:
            worker.hang_up()
        await _wait_until_ended(workers, LEAVE_WITHIN_S)
        for worker in workers:
            worker.kill()
        await _wait_until_ended(workers, None)
        for group in self._groups.values():
            group.forget_stuck()
        shared.close()

    async def _stream(
        self, located: Located, locate: Locate, pieces: Pieces, outcome: asyncio.Future[None], cap: Cap | None
    ) -> dict[str, str]:
        group, origin, _ = self._place(located.location)
        job = StreamJob(self._setting, origin, located, pieces, outcome)
        job.cap = cap
        job.relocate_with(locate)
        await self._carry_out(group, [job], outcome)
        return job.whole

    async def _piece_by_piece(
        self, located: Located, locate: Locate, pieces: Pieces, cap: Cap | None, share: Share | None
    ) -> dict[str, str]:
        """Claims are proved while the rest travels already; what turns out wrong travels too. What others bring of a
        file with a serial hash goes through it meanwhile, if it is the file's turn: then that is returned."""
        outcome = self._new_outcome()
        group, origin, disk = self._place(located.location)
        job = PieceJob(self._setting, origin, located, pieces, outcome)
        job.cap = cap
        job.relocate_with(locate)
        jobs: list[AnyJob] = [job]
        if pieces.claimed:
            proving = RehashJob(self._setting, disk, pieces.at_rest(job.prove), outcome)
            proving.blobs = job.blobs
            jobs.append(proving)
        if share is None:
            job.want(pieces.unclaimed())
            await self._carry_out(group, jobs, outcome)
            return {}
        job.share_with(share)
        if needs_serial(pieces.order.checksums):
            job.follower = FollowJob(self._setting, self._followers(group), located, pieces, outcome)
            jobs.append(job.follower)
        share.begin(job, pieces.unclaimed())
        try:
            await self._carry_out(group, jobs, outcome)
        finally:
            await share.end()
        return job.follower.whole if job.follower is not None else {}

    @contextmanager
    def _known(self, blobs: Collection[str]) -> Iterator[None]:
        """While they are brought: what is raised between two of their jobs, or before the first, is not lost."""
        self._urgency.update(dict.fromkeys(blobs, -sys.maxsize))
        try:
            yield
        finally:
            for blob in blobs:
                self._urgency.pop(blob, None)

    async def _carry_out(self, group: WorkerGroup, jobs: Sequence[AnyJob], outcome: asyncio.Future[None]) -> None:
        self._outcomes.add(outcome)
        try:
            for job in jobs:
                job.priority = max([job.priority, *(self._urgency.get(blob, job.priority) for blob in job.blobs)])
                group.add(job)
            await outcome
        except BaseException as error:
            await self._withdraw(group, jobs, error)
            raise
        finally:
            self._outcomes.discard(outcome)
        await self._withdraw(group, jobs, None)

    @staticmethod
    async def _withdraw(group: WorkerGroup, jobs: Sequence[AnyJob], error: BaseException | None) -> None:
        """Returns when no worker touches any target of these jobs; raises if one still may."""
        try:
            await group.remove(jobs)
        except asyncio.CancelledError as cancelled:
            error = cancelled
        abandoned = first_abandoned(jobs)
        if isinstance(error, asyncio.CancelledError):
            raise asyncio.CancelledError from abandoned
        if abandoned is not None and error is not abandoned:
            raise abandoned from error

    def _place(self, location: Location) -> tuple[WorkerGroup, Origin, Origin]:
        """The group that serves a location, its origin, and our own disk as that group sees it."""
        key = origin_key(location, read_mountinfo() if isinstance(location, PathLocation) else "")
        group = group_key(location, key)
        return self._group(group), self._origin(key), self._disk(group)

    def _group(self, key: str) -> WorkerGroup:
        if key not in self._groups:
            idle_limit_s = None if key == HTTP_GROUP else IDLE_MOUNT_S
            self._groups[key] = WorkerGroup(self._setting, self._start_worker, idle_limit_s)
        return self._groups[key]

    def _origin(self, key: str) -> Origin:
        if key not in self._origins:
            self._origins[key] = Origin(make_limit(self.config), self.config, self._setting.random)
        return self._origins[key]

    def _disk(self, group: str) -> Origin:
        if group not in self._disks:
            self._disks[group] = self._our_disk(READERS_PER_WORKER)
        return self._disks[group]

    def _followers(self, group: WorkerGroup) -> Origin:
        """Counts the files that are hashed as they come."""
        if group not in self._following:
            self._following[group] = self._our_disk(FOLLOWED_PER_WORKER)
        return self._following[group]

    def _our_disk(self, readers_per_worker: int) -> Origin:
        """As so many read from it."""
        limit = FixedLimit(readers_per_worker * self.config.worker_count())
        return Origin(limit, self.config, self._setting.random, brings=False)

    def _start_worker(self, on_end: Callable[[Worker], None]) -> Worker:
        assert self._shared is not None
        launch = Launch(
            argv=self._argv,
            slot=self._free_slot(),
            shared=self._shared,
            threads=self.config.threads_per_worker(),
            idle_timeout_s=self.config.idle_timeout_s,
            answer_limit_s=self.config.answer_limit_s,
        )
        return Worker(launch, on_end)

    def _free_slot(self) -> int:
        used = {worker.slot for group in self._groups.values() for worker in group.workers} | self._lent
        return next(slot for number in self._slots if (slot := number % MOST_SLOTS) not in used)

    def _require_open(self) -> Caps:
        if self._shared is None or self._caps is None:
            raise _closed()
        return self._caps

    @staticmethod
    def _new_outcome() -> asyncio.Future[None]:
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A caller that is cancelled in the same instant never looks at the error: that is no reason to complain.
        outcome.add_done_callback(lambda done: done.cancelled() or done.exception())
        return outcome


async def _wait_until_ended(workers: Sequence[Worker], timeout_s: float | None) -> None:
    waits = [asyncio.ensure_future(worker.ended.wait()) for worker in workers if not worker.ended.is_set()]
    if waits:
        _, late = await asyncio.wait(waits, timeout=timeout_s)
        for wait in late:
            wait.cancel()


def _nobody_listens(index: int, blake3: str, length: int, origin: PieceOrigin) -> None:
    """For those who look at the target when it is done."""


def _closed() -> TransferFailed:
    return TransferFailed("the worker pool is closed", hint="start the agent, or open the pool, before fetching")
