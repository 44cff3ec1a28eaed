"""Who goes next, on how many connections, and who makes way."""

from __future__ import annotations

from dataclasses import dataclass

from cacheagent.transfer.schedule import (
    PREEMPT_AFTER_S,
    Queue,
    batch_size,
    chunks,
    find_victims,
    is_overdue,
    lanes_of_stream,
)


@dataclass
class Job:
    name: str
    priority: int
    arrival: int


@dataclass
class Running:
    name: str
    priority: int
    started: float
    lasting: bool = False


def test_larger_priority_first_then_first_come() -> None:
    """A waiting pod overtakes what was there before; equals keep their order."""
    queue: Queue[Job] = Queue()
    jobs = [Job("a", 0, 1), Job("b", 0, 2), Job("pod", 100, 3), Job("c", 0, 4), Job("pod2", 100, 5)]
    for job in (jobs[3], jobs[0], jobs[2], jobs[4], jobs[1]):
        queue.add(job)
    assert [job.name for job in queue] == ["pod", "pod2", "a", "b", "c"]
    queue.remove(jobs[0])
    queue.remove(jobs[0])
    assert [job.name for job in queue] == ["pod", "pod2", "b", "c"]
    assert len(queue) == 4


def test_only_what_is_less_urgent_and_lasts_makes_way() -> None:
    """Least urgent and youngest first; what ends soon is left alone."""
    running = [
        Running("stream", 0, 0.0, lasting=True),
        Running("young-stream", 0, 50.0, lasting=True),
        Running("piece", 0, 99.0),
        Running("slow-piece", 5, 100.0 - PREEMPT_AFTER_S - 1),
        Running("equal", 10, 0.0, lasting=True),
        Running("pod", 20, 0.0, lasting=True),
    ]
    assert [each.name for each in find_victims(100.0, 10, 9, running)] == ["young-stream", "stream", "slow-piece"]
    assert [each.name for each in find_victims(100.0, 10, 1, running)] == ["young-stream"]
    assert find_victims(100.0, 0, 9, running) == []


def test_streams_share_the_connections() -> None:
    """Few files get several lanes each, many get one; never more than are free."""
    assert lanes_of_stream(limit=8, streams=1, free=8) == 8
    assert lanes_of_stream(limit=8, streams=3, free=8) == 2
    assert lanes_of_stream(limit=8, streams=30, free=8) == 1
    assert lanes_of_stream(limit=8, streams=1, free=3) == 3
    assert lanes_of_stream(limit=8, streams=0, free=8) == 8


def test_batches_spread_few_files_and_fill_up_with_many() -> None:
    """Ten files on eight connections don't wait in one batch; ten thousand travel in full ones."""
    assert batch_size(waiting=10, limit=8) == 8
    assert batch_size(waiting=256, limit=8) == 32
    assert batch_size(waiting=10_000, limit=8) == 64


def test_chunks_keep_the_order() -> None:
    """Nothing is lost at the end."""
    assert chunks((5, 1, 4, 2, 3), 2) == [(5, 1), (4, 2), (3,)]
    assert chunks((), 2) == []


def test_an_order_is_overdue_when_its_worker_is_silent_or_it_could_never_take_so_long() -> None:
    """With an idle limit of 30 s: 60 s of silence, or 60 s more than 64 KiB/s would need."""
    piece = 16 * 2**20
    assert not is_overdue(59.0, 0.0, 0.0, piece, 30.0)
    assert is_overdue(61.0, 0.0, 0.0, piece, 30.0)
    assert not is_overdue(300.0, 0.0, 299.0, piece, 30.0)
    assert is_overdue(317.0, 0.0, 316.0, piece, 30.0)
    assert not is_overdue(1061.0, 1010.0, 0.0, piece, 30.0)
