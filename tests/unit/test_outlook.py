"""What a waiting pod's events say."""

from __future__ import annotations

from typing import Any

import pytest

from cacheagent.outlook import describe_wait, duration_text
from cacheagent.progress import JobStatus


def job(phase: str = "fetching", name: str = "llama", **more: Any) -> JobStatus:
    """A job's state."""
    return JobStatus(name=name, uri="s3://b/m", phase=phase, **more)  # type: ignore[arg-type]


MOVING = job(bytes_total=141_000_000_000, bytes_fetched=52_170_000_000, rate_bytes_per_s=1.1e9, eta_s=80.2)
BEGUN = job(bytes_total=141_000_000_000, bytes_fetched=6_000, rate_bytes_per_s=3_000.0)
SLOWED = job(bytes_total=2_000_000, bytes_fetched=10**6, rate_bytes_per_s=5e4, eta_s=20, limit_bytes_per_s=50_000)
STUCK = job(bytes_total=141_000_000_000)
OTHER = job(name="qwen", bytes_total=5, rate_bytes_per_s=5.0)
FAILED = job("failed", message="bucket/m: 403", error="forbidden", hint="name a credential that may read it")


@pytest.mark.parametrize(
    ("status", "retry_in_s", "running", "sentence"),
    [
        (None, 0.0, [], "it is about to be fetched"),
        (job("queued"), 0.0, [], "its source is being listed"),
        (job("resolving"), 0.0, [], "its source is being listed"),
        (job("reserving", bytes_total=2_000_000), 0.0, [], "room is being made for 2 MB"),
        (MOVING, 0.0, [MOVING], "37 %, 52.2 of 141 GB, about 80 s left"),
        (SLOWED, 0.0, [SLOWED], "50 %, 1 of 2 MB, about 20 s left; its warm-up lets this node take 50 KB/s"),
        (BEGUN, 0.0, [BEGUN], "0 %, 6 KB of 141 GB, too early to say how long it takes"),
        (STUCK, 0.0, [STUCK], "0 %, 0 B of 141 GB, no piece complete in the last seconds"),
        (STUCK, 0.0, [STUCK, OTHER], "0 %, 0 B of 141 GB, queued behind qwen (1 download runs)"),
        (STUCK, 0.0, [OTHER, MOVING], "0 %, 0 B of 141 GB, queued behind qwen (1 download runs)"),
        (job("publishing", bytes_total=2_000), 0.0, [], "all 2 KB are here and are being made visible"),
        (
            FAILED,
            12.0,
            [],
            "the last try failed: bucket/m: 403 (name a credential that may read it); tried again in 12 s",
        ),
        (
            job("failed", message="no answer", error="origin-unavailable", hint="is it up?"),
            0.0,
            [],
            "the last try failed: no answer; being tried again",
        ),
        (job("ready"), 0.0, [], "it was here and is gone again; it is about to be fetched"),
    ],
)
def test_each_state_has_its_sentence(
    status: JobStatus | None, retry_in_s: float, running: list[JobStatus], sentence: str
) -> None:
    """With the figures that a person wants, and a next step where a person must act."""
    assert describe_wait(status, retry_in_s, running) == sentence


def test_durations() -> None:
    """Rounded as people do."""
    assert [duration_text(seconds) for seconds in (0.4, 80, 300, 12_600)] == ["0 s", "80 s", "5 min", "3.5 h"]
