"""The shared ingress cap: a schedule that many processes reserve from, and their counters."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from cacheagent.transfer.rate import BURST_NS, LARGEST_SLICE_BYTES, LOOK_S, SMALLEST_SLICE_BYTES, SharedRate

SECOND_NS = 1_000_000_000


@pytest.fixture
def shared() -> Iterator[SharedRate]:
    made = SharedRate.create(2, 200_000_000)
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [10 * SECOND_NS]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    return now


def test_without_a_cap_nobody_waits_and_nothing_is_sliced() -> None:
    """The common case costs one look at the memory."""
    shared = SharedRate.create(1)
    assert shared.whole.bytes_per_s == 0
    assert shared.whole.reserve(1 << 40) == 0.0
    assert shared.whole.reserve(1 << 40) == 0.0
    meter = shared.meter(0)
    view = memoryview(bytearray(1 << 20))
    assert [len(part) for part in meter.pace(view, lambda _: pytest.fail("nobody waits"))] == [1 << 20]
    shared.close()


def test_reservations_follow_one_another(shared: SharedRate, clock: list[int]) -> None:
    """Each waits for the time that all before it need; what came late may be caught up for 10 ms only."""
    assert shared.whole.reserve(2_000_000) == 0.0  # 10 ms of the cap, out of the burst
    assert shared.whole.reserve(2_000_000) == 0.0
    assert shared.whole.reserve(20_000_000) == pytest.approx(0.01)
    assert shared.whole.reserve(1) == pytest.approx(0.11)
    clock[0] += SECOND_NS
    assert shared.whole.reserve(1) == 0.0
    assert shared.whole.reserve(200_000_000) == 0.0
    assert shared.whole.reserve(1) == pytest.approx(1.0 - BURST_NS / SECOND_NS)


def test_a_larger_cap_makes_up_for_a_smaller_one(shared: SharedRate, clock: list[int]) -> None:
    """What had to wait for an hour at 1 kB/s waits for milliseconds at 1 MB/s, and not at all when the cap was lifted
    meanwhile; a smaller cap shortens nothing."""
    shared.whole.set(1000)
    shared.whole.reserve(3_600_000)
    assert shared.whole.reserve(1) == pytest.approx(3600, rel=0.01)
    shared.whole.set(100)
    assert shared.whole.reserve(1) == pytest.approx(3600, rel=0.01)
    shared.whole.set(1_000_000)
    assert shared.whole.reserve(1) == pytest.approx(0.36, rel=0.01)
    shared.whole.reserve(50_000_000)
    shared.whole.set(0)
    shared.whole.set(1_000_000)
    assert shared.whole.reserve(1) == 0.0


def test_over_any_second_the_cap_holds_within_three_percent(shared: SharedRate, clock: list[int]) -> None:
    """However greedy and irregular: simulated callers that come early, late, and oversleep."""
    cap = 200_000_000
    taken: list[tuple[int, int]] = []
    for number in range(4000):
        wait_s = shared.whole.reserve(LARGEST_SLICE_BYTES)
        clock[0] += int(wait_s * 1e9) + number % 7 * 300_000
        taken.append((clock[0], LARGEST_SLICE_BYTES))
        if number % 500 == 499:
            clock[0] += SECOND_NS // 3
    for start, _ in taken:
        within = sum(length for at, length in taken if start <= at < start + SECOND_NS)
        assert within <= cap * 1.03
    steady = [(b - a) for (a, _), (b, _) in pairwise(taken[:500])]
    assert 499 * LARGEST_SLICE_BYTES / sum(steady) * 1e9 == pytest.approx(cap, rel=0.03)


def test_slices_are_ten_milliseconds_of_the_cap(shared: SharedRate) -> None:
    """Within bounds: a slow cap isn't quantized by large slices, a fast one isn't all bookkeeping."""
    assert shared.whole.slice_bytes == LARGEST_SLICE_BYTES
    shared.whole.set(10_000_000)
    assert shared.whole.slice_bytes == 100_000
    shared.whole.set(1)
    assert shared.whole.slice_bytes == SMALLEST_SLICE_BYTES
    shared.whole.set(0)
    assert shared.whole.slice_bytes == 0


def test_a_meter_paces_and_counts_what_was_filled(shared: SharedRate) -> None:
    """Counted after the caller has filled a slice; a slice that fails isn't counted."""
    slept: list[float] = []
    meter = shared.meter(1)
    view = memoryview(bytearray(10 * LARGEST_SLICE_BYTES + 1))
    lengths = [len(part) for part in meter.pace(view, slept.append)]
    assert lengths == [LARGEST_SLICE_BYTES] * 10 + [1]
    assert slept
    for _ in meter.pace(view, slept.append):
        break
    meter.count_received(5)
    meter.count_buffered(7)
    assert (shared.received_bytes(1), shared.buffered_bytes(1)) == (len(view) + 5, 7)
    assert (shared.received_bytes(0), shared.buffered_bytes(0)) == (0, 0)


def test_processes_share_the_schedule_and_one_that_dies_holds_nothing() -> None:
    """A child takes its turn in the same memory and is killed with the lock in its hand; the parent goes on."""
    shared = SharedRate.create(1, 1_000_000)
    program = (
        "import fcntl, os, signal, sys\n"
        "from cacheagent.transfer.rate import SharedRate\n"
        "shared = SharedRate(int(sys.argv[1]))\n"
        "shared.whole.reserve(1_000_000)\n"
        "shared.meter(0).count_received(42)\n"
        "fcntl.lockf(shared.fd, fcntl.LOCK_EX)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(shared.fd)], pass_fds=(shared.fd,), check=False, timeout=60)
    assert shared.received_bytes(0) == 42
    assert shared.whole.reserve(60_000_000) <= 1.0
    assert shared.whole.reserve(1) > 50.0  # the child's second, if it isn't over, and ours
    os.fstat(shared.fd)
    shared.close()


def test_who_waits_already_goes_on_when_the_cap_is_lifted_or_raised(
    shared: SharedRate, clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a fifth of a second, and never before the new rate allows it; a lower one in between shortens nothing."""
    monkeypatch.setattr(time, "monotonic", lambda: clock[0] / SECOND_NS)
    caps: dict[int, int] = {}
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += int(seconds * SECOND_NS)
        if (cap := caps.pop(len(slept), None)) is not None:
            shared.whole.set(cap)

    def waits(**changes: int) -> float:
        caps.update({int(number.removeprefix("after_")): cap for number, cap in changes.items()})
        slept.clear()
        shared.whole.set(0)
        shared.whole.set(1000)
        shared.whole.reserve(100_000)
        shared.whole.wait_for(1, sleep)
        return sum(slept)

    assert waits() == pytest.approx(100, rel=0.01)
    assert waits(after_3=0) == pytest.approx(3 * LOOK_S)
    assert waits(after_5=10_000) == pytest.approx(5 * LOOK_S + (100 - 5 * LOOK_S) / 10, rel=0.01)
    assert waits(after_5=1, after_10=1000) == pytest.approx(100, rel=0.01)
    assert max(slept) <= LOOK_S
