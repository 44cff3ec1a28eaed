"""Who goes next, and on how many connections. Pure."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar

PREEMPT_AFTER_S: Final = 5.0
"""What runs longer than this in the way of something urgent is taken back; a usual piece is done by then. Chosen."""
BATCH_FILES: Final = 64
FEWEST_BATCH_FILES: Final = 8
"""Small files per order: enough that an order's own cost does not count. Chosen."""
REHASH_PIECES: Final = 8
"""Pieces per order: 128 MiB, so that a cancelled order ends soon and the work spreads. Chosen."""
IDLE_FACTOR: Final = 2.0
SLOWEST_BYTES_PER_S: Final = 64 * 1024


class Queued(Protocol):
    """What the queue needs to know of a job."""

    priority: int
    arrival: int


Q = TypeVar("Q", bound=Queued)


class Queue(Generic[Q]):
    """Jobs in the order in which they may take connections: larger priority first, then first come, first served. Early
    files finish early, because a job's pieces are not mixed with those of later jobs as long as it has any.
    """

    def __init__(self) -> None:
        self._jobs: list[Q] = []

    def add(self, job: Q) -> None:
        """It keeps its place until it is removed."""
        insort(self._jobs, job, key=_place)

    def remove(self, job: Q) -> None:
        """Whether it is there or not."""
        if job in self._jobs:
            self._jobs.remove(job)

    def __iter__(self) -> Iterator[Q]:
        return iter(tuple(self._jobs))

    def __len__(self) -> int:
        return len(self._jobs)


class Running(Protocol):
    """Something under way that could be taken back: how urgent, since when, and whether it lasts a whole file."""

    started: float

    @property
    def priority(self) -> int: ...

    @property
    def lasting(self) -> bool: ...


R = TypeVar("R", bound=Running)


def find_victims(now: float, waiting_priority: int, wanted: int, running: Iterable[R]) -> list[R]:
    """What to take back so that something more urgent can start: only what is less urgent and would not end soon by
    itself; the least urgent and youngest first, at most `wanted`.
    """
    in_the_way = [
        each
        for each in running
        if each.priority < waiting_priority and (each.lasting or now - each.started > PREEMPT_AFTER_S)
    ]
    return sorted(in_the_way, key=lambda each: (each.priority, -each.started))[: max(0, wanted)]


def lanes_of_stream(limit: int, streams: int, free: int) -> int:
    """Connections for one file that must be hashed in order, when `streams` of them share `limit` connections."""
    return max(1, min(limit // max(1, streams), free))


def batch_size(waiting: int, limit: int) -> int:
    """Small files in the next order: few are spread over all connections, many travel in full batches."""
    return min(BATCH_FILES, max(FEWEST_BATCH_FILES, -(-waiting // max(1, limit))))


def chunks(indexes: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """In order, each at most `size` long."""
    return [tuple(indexes[start : start + size]) for start in range(0, len(indexes), size)]


def is_overdue(now: float, asked_at: float, worker_alive_at: float, length: float, idle_timeout_s: float) -> bool:
    """Whether an order has to be taken for hung: its worker has shown no sign of life (bytes, reports) for twice the
    time after which it should have given up by itself, or the order itself none since `asked_at` for longer than its
    bytes could take. One that goes on, however slowly, says so: what it has brought is not thrown away.
    """
    grace_s = IDLE_FACTOR * idle_timeout_s
    silent = now - max(worker_alive_at, asked_at) > grace_s
    return silent or now - asked_at > grace_s + length / SLOWEST_BYTES_PER_S


def _place(job: Queued) -> tuple[int, int]:
    return -job.priority, job.arrival
