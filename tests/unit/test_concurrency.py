"""How many connections: the rules, with a clock and an origin made of arithmetic."""

from __future__ import annotations

from collections.abc import Callable

from cacheagent.transfer.concurrency import HOLD_S, ConnectionLimit, FixedLimit


def drive(
    limit: ConnectionLimit, goodput: Callable[[int], float], *, seconds: float, start: float = 0.0
) -> list[tuple[float, int]]:
    """Sample each half second; (time, connections) whenever the number changed."""
    changes = [(start, limit.current)]
    for step in range(1, int(seconds * 2) + 1):
        now = start + step * 0.5
        limit.sample(now, goodput(limit.current), saturated=True)
        if limit.current != changes[-1][1]:
            changes.append((now, limit.current))
    return changes


def test_grows_while_each_connection_brings_its_share() -> None:
    """An origin that gives every connection the same gets as many as are allowed, within seconds."""
    limit = ConnectionLimit(initial=8, maximum=64)
    changes = drive(limit, lambda connections: connections * 50e6, seconds=10)
    assert [number for _, number in changes] == [8, 12, 18, 27, 40, 60, 64]


def test_stays_where_more_connections_bring_nothing() -> None:
    """One step up is tried and taken back; the next try comes only after the hold."""
    limit = ConnectionLimit(initial=8, maximum=64)
    changes = drive(limit, lambda _: 1e9, seconds=12)
    assert [number for _, number in changes] == [8, 12, 8]
    assert drive(limit, lambda _: 1e9, seconds=HOLD_S, start=12)[1][1] == 12
    quick = ConnectionLimit(initial=8, maximum=64, hold_s=1)
    assert [number for _, number in drive(quick, lambda _: 1e9, seconds=12)][:5] == [8, 12, 8, 12, 8]


def test_finds_the_knee_of_a_saturating_origin() -> None:
    """It ends near the number beyond which the link is full, and does not run away."""
    limit = ConnectionLimit(initial=8, maximum=256)
    drive(limit, lambda connections: min(connections, 30) * 50e6, seconds=30)
    assert 27 <= limit.current <= 44


def test_says_nothing_while_connections_are_idle() -> None:
    """Goodput of an origin that is not asked for all it may give is no evidence."""
    limit = ConnectionLimit(initial=8, maximum=64)
    for step in range(100):
        limit.sample(step * 0.5, 1e9 * step, saturated=False)
    assert limit.current == 8


def test_halves_when_throttled_once_for_failures_that_come_together() -> None:
    """Eight 429 within a moment are one event; another one later halves again; the floor is one."""
    limit = ConnectionLimit(initial=8, maximum=64)
    for _ in range(8):
        limit.throttled(100.0)
    assert limit.current == 4
    limit.throttled(103.0)
    assert limit.current == 2
    for now in range(110, 150, 5):
        limit.throttled(float(now))
    assert limit.current == 1


def test_time_outs_lower_it_less_than_a_throttle() -> None:
    """A time-out may be bad luck."""
    limit = ConnectionLimit(initial=10, maximum=64)
    limit.timed_out(1.0)
    assert limit.current == 7


def test_recovers_after_a_throttle() -> None:
    """After the hold it grows again, in small steps."""
    limit = ConnectionLimit(initial=8, maximum=64)
    limit.throttled(0.0)
    changes = drive(limit, lambda connections: connections * 50e6, seconds=HOLD_S + 6)
    assert [number for _, number in changes][:4] == [4, 8, 12, 16]
    assert changes[1][0] >= HOLD_S


def test_a_fixed_number_stays() -> None:
    """What somebody decided is not adapted, neither up nor down."""
    limit = FixedLimit(5)
    drive(limit, lambda connections: connections * 50e6, seconds=20)
    limit.throttled(30.0)
    limit.timed_out(40.0)
    assert limit.current == 5


def test_starts_within_the_maximum() -> None:
    """A maximum below the usual start wins."""
    assert ConnectionLimit(initial=8, maximum=3).current == 3


def test_a_thin_link_is_not_given_every_connection() -> None:
    """1 MB/s, counted by the half MiB when it is whole: most seconds have none, some have all. (Each connection more
    makes every piece take longer: with 64 of them a quarter of an hour.)"""
    limit = ConnectionLimit(initial=8, maximum=64)
    most, begun = 8, [0.0] * 64
    for tick in range(1, 240):
        here, counted = limit.current, 0.0
        for number in range(here):
            begun[number] += 0.5 * 1e6 / here
            counted += begun[number] // 2**19 * 2**19
            begun[number] %= 2**19
        limit.sample(tick * 0.5, counted / 0.5, saturated=True)
        most = max(most, limit.current)
    assert most <= 16


def test_an_origin_that_gives_nothing_gets_no_more_connections() -> None:
    """Nothing is no reason for more of it."""
    limit = ConnectionLimit(initial=8, maximum=64)
    assert drive(limit, lambda _: 0.0, seconds=60) == [(0.0, 8)]
