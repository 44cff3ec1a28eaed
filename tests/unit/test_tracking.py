"""Progress: counts, rate, time left, and how often it is told."""

from __future__ import annotations

from cacheagent.errors import NoRoom
from cacheagent.model import Manifest, RemoteFile
from cacheagent.progress import JobStatus
from cacheagent.tracking import EVENT_INTERVAL_S, RATE_WINDOW_S, Tracker

MANIFEST = Manifest(
    kind="tree", source_kind="s3", files=(RemoteFile(path="a", size_bytes=1000, identity={"key": "a"}),)
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tracker(events: list[JobStatus], clock: Clock) -> Tracker:
    return Tracker("m", "s3://b/m", 0, events.append, now=clock)


def test_rate_and_time_left_come_from_the_last_seconds() -> None:
    """Bytes before the window do not flatter a transfer that has become slow."""
    clock = Clock()
    job = tracker([], clock)
    job.resolved(MANIFEST)
    job.enter("fetching")
    clock.now += 1
    job.fetched(500)
    assert job.status().rate_bytes_per_s == 500
    assert job.status().eta_s == 1.0
    clock.now += RATE_WINDOW_S + 1
    job.fetched(100)
    status = job.status()
    assert status.rate_bytes_per_s == 100 / RATE_WINDOW_S
    assert status.bytes_done == status.bytes_fetched == 600
    assert status.eta_s == 40.0


def test_nothing_is_foretold_from_the_first_small_files() -> None:
    """They come slowly for their size; one part in a hundred is enough to tell."""
    clock = Clock()
    job = tracker([], clock)
    job.resolved(MANIFEST)
    job.enter("fetching")
    clock.now += 1
    job.fetched(MANIFEST.size_bytes // 200)
    assert job.status().rate_bytes_per_s > 0
    assert job.status().eta_s == -1
    job.fetched(MANIFEST.size_bytes // 100)
    assert job.status().eta_s > 0


def test_linked_and_kept_bytes_count_as_done_but_not_as_rate() -> None:
    """A resumed pull does not show an absurd speed."""
    clock = Clock()
    job = tracker([], clock)
    job.resolved(MANIFEST)
    job.enter("fetching")
    clock.now += 1
    job.linked(300)
    job.kept(200)
    status = job.status()
    assert (status.bytes_linked, status.bytes_kept, status.bytes_done) == (300, 200, 500)
    assert status.rate_bytes_per_s == 0
    assert status.eta_s == -1


def test_phases_are_always_told_and_bytes_not_more_often_than_an_eye_follows() -> None:
    """A thousand pieces in a moment make one event."""
    clock = Clock()
    events: list[JobStatus] = []
    job = tracker(events, clock)
    job.enter("resolving")
    job.resolved(MANIFEST)
    job.enter("fetching")
    told = len(events)
    assert told == 3
    for _ in range(1000):
        job.fetched(1)
    assert len(events) == told
    clock.now += EVENT_INTERVAL_S
    job.fetched(0)
    assert len(events) == told + 1
    assert events[-1].bytes_fetched == 1000


def test_the_end_is_told_with_its_reason_and_time_stands_still() -> None:
    """What failed, why, and what to do; the clock of an ended job does not run on."""
    clock = Clock()
    events: list[JobStatus] = []
    job = tracker(events, clock)
    clock.now += 2
    job.failed(NoRoom("needs 141 GB", hint="evict something"))
    clock.now += 50
    status = job.status()
    assert status == events[-1]
    assert status.finished
    assert (status.phase, status.error, status.message, status.hint) == (
        "failed",
        "no-room",
        "needs 141 GB",
        "evict something",
    )
    assert status.elapsed_s == 2

    done = tracker(events, clock)
    done.ready("/cache/models/x", MANIFEST)
    assert events[-1].finished
    assert events[-1].path == "/cache/models/x"
    assert events[-1].digest == MANIFEST.digest
