"""What is asked for again, when, and how long; with a clock of numbers."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from cacheagent.errors import (
    CacheAgentError,
    ChecksumMismatch,
    DiskFault,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginUnavailable,
    OriginWrong,
    SourceChanged,
    TransferFailed,
)
from cacheagent.transfer.concurrency import ConnectionLimit, FixedLimit
from cacheagent.transfer.config import TransferConfig
from cacheagent.transfer.orders import Failed, FailureKind
from cacheagent.transfer.origin import Origin
from cacheagent.transfer.retry import (
    FREE_FAILURES,
    WORKER_TRIES,
    Budget,
    backoff_s,
    is_refusal,
    is_throttle,
    permanent_error,
    refusal_error,
    retry_reason,
    worker_error,
)


def failure(kind: FailureKind, **details: Any) -> Failed:
    return Failed(id=1, kind=kind, message=f"scripted {kind}", **details)


def status(number: int, **details: Any) -> Failed:
    return Failed(id=1, kind="status", message=f"answered {number}", status=number, **details)


@pytest.mark.parametrize(
    ("failed", "error", "sentence"),
    [
        (status(404), OriginNotFound, "a.bin: answered 404"),
        (status(410), OriginNotFound, "answered 410"),
        (status(412), SourceChanged, "answered 412"),
        (status(416), SourceChanged, "answered 416"),
        (status(301), OriginWrong, "answered 301"),
        (status(405), OriginWrong, "answered 405"),
        (failure("changed"), SourceChanged, "a.bin: scripted changed"),
        (failure("mismatch"), ChecksumMismatch, "scripted mismatch"),
        (failure("disk-full"), DiskFault, "a.bin: scripted disk-full"),
        (failure("disk-fault"), DiskFault, "a.bin: scripted disk-fault"),
        (failure("source-io", errno=errno.ENOENT), OriginNotFound, "scripted source-io"),
        (failure("source-io", errno=errno.EACCES), OriginForbidden, "scripted source-io"),
    ],
)
def test_answers_that_stay_the_same_are_raised_at_once(
    failed: Failed, error: type[CacheAgentError], sentence: str
) -> None:
    """The class says what the caller does next; the message what happened and where; the hint what to do."""
    found = permanent_error(failed, "http://o/a.bin", 1)
    assert type(found) is error
    assert sentence in found.message
    assert found.hint


@pytest.mark.parametrize(
    "failed",
    [
        status(408),
        status(425),
        status(429),
        status(500),
        status(502),
        status(503),
        status(504),
        failure("connect"),
        failure("reset"),
        failure("timeout"),
        failure("protocol"),
        failure("tls"),
        failure("source-io", errno=errno.EIO),
    ],
)
def test_what_may_pass_is_asked_for_again(failed: Failed) -> None:
    """Nothing is raised for a first failure of these."""
    assert permanent_error(failed, "a", 1) is None


def test_protocol_errors_get_one_more_try_and_handshakes_two() -> None:
    """A proxy may hiccup once; a wrong certificate stays wrong."""
    assert permanent_error(failure("protocol"), "a", 1) is None
    assert type(permanent_error(failure("protocol"), "a", 2)) is OriginWrong
    assert permanent_error(failure("tls"), "a", 2) is None
    tls = permanent_error(failure("tls"), "a", 3)
    assert type(tls) is OriginUnavailable
    assert "ca_bundle" in tls.hint


def test_refusals_and_throttles_are_told_from_the_rest() -> None:
    """401 and 403 may be a URL's age, and so may S3's 400; 429 and 503 ask for less."""
    assert [number for number in range(600) if is_refusal(status(number))] == [400, 401, 403]
    assert [number for number in range(600) if is_throttle(status(number))] == [429, 503]
    assert type(refusal_error(status(403), "a")) is OriginForbidden
    assert type(refusal_error(status(400), "a")) is OriginWrong


def test_reasons_name_what_happened() -> None:
    """For counting: few words, always the same."""
    assert retry_reason(status(503)) == "throttled"
    assert retry_reason(status(500)) == "server-error"
    assert retry_reason(failure("reset")) == "reset"
    assert retry_reason(failure("source-io")) == "source-io"


def test_a_worker_that_dies_is_replaced_a_few_times() -> None:
    """An order that ends every worker is not tried for ever; the last cause is named."""
    last = TransferFailed("worker 7 ended (signal 9)")
    assert worker_error("a", WORKER_TRIES - 1, last) is None
    final = worker_error("a, piece 3", WORKER_TRIES, last)
    assert type(final) is TransferFailed
    assert final.message == (
        "a, piece 3: 3 transfer workers ended while they worked on it; the last: worker 7 ended (signal 9)"
    )


def test_backoff_grows_to_its_cap_with_full_jitter() -> None:
    """Every delay is between nothing and the exponential, and they differ."""
    source = random.Random(1)
    for failures in range(1, 50):
        delays = [backoff_s(failures, 0.5, 10.0, source) for _ in range(50)]
        assert 0 <= min(delays) < max(delays) <= min(10.0, 0.5 * 2 ** (failures - 1))


def test_without_progress_a_call_ends_after_its_time_and_says_why() -> None:
    """One second before, it goes on; the error carries the last cause, the tries and the duration."""
    budget = Budget(300.0, now=1000.0)
    for now in range(1000, 1300, 10):
        assert budget.final_error(failure("connect"), "http://o/a", float(now), float("-inf")) is None
    final = budget.final_error(failure("connect"), "http://o/a", 1300.0, float("-inf"))
    assert type(final) is OriginUnavailable
    assert final.message == (
        "http://o/a: scripted connect; gave up after 31 failed tries in 300 s (nothing came for 300 s)"
    )


def test_progress_of_anybody_at_the_origin_keeps_a_call_alive() -> None:
    """An origin that gives others something is up."""
    budget = Budget(300.0, now=0.0)
    assert budget.final_error(failure("reset"), "a", 400.0, progress_at=200.0) is None
    assert type(budget.final_error(failure("reset"), "a", 501.0, progress_at=200.0)) is OriginUnavailable


def test_a_call_that_waits_as_it_should_is_not_given_up() -> None:
    """For its cap, say: the origin owes it nothing so long."""
    budget = Budget(300.0, now=0.0)
    budget.goes_on(290.0)
    assert budget.final_error(failure("reset"), "a", 580.0, progress_at=0.0) is None
    assert type(budget.final_error(failure("reset"), "a", 591.0, progress_at=0.0)) is OriginUnavailable


def test_an_origin_that_mostly_fails_is_given_up() -> None:
    """A share of failures is borne, in relation to what came."""
    budget = Budget(300.0, now=0.0)
    for _ in range(FREE_FAILURES):
        assert budget.final_error(failure("reset"), "a", 1.0, 1.0) is None
    budget.succeeded()
    assert budget.final_error(failure("reset"), "a", 1.0, 1.0) is None
    assert budget.final_error(failure("reset"), "a", 1.0, 1.0) is None
    final = budget.final_error(failure("reset"), "a", 1.0, 1.0)
    assert type(final) is OriginUnavailable
    assert "gave up after 103 failed tries in 1 s (most tries failed)" in final.message


def test_throttling_to_the_end_is_named_as_such() -> None:
    """The operator's next step is another one than for an origin that is down."""
    final = Budget(10.0, now=0.0).final_error(status(429), "a", 11.0, float("-inf"))
    assert type(final) is OriginThrottled
    assert "fewer connections" in final.hint


def new_origin(limit: ConnectionLimit | None = None) -> Origin:
    return Origin(limit or FixedLimit(4), TransferConfig(), random.Random(1))


def test_retry_after_pauses_the_whole_origin_up_to_a_cap() -> None:
    """Nobody asks before; an origin that says a year is asked after two minutes."""
    origin = new_origin()
    assert origin.capacity(0.0) == 4
    assert origin.failed(0.0, status(429, retry_after_s=7.0)) == 7.0
    assert origin.capacity(6.9) == 0
    assert origin.capacity(7.0) == 4
    assert origin.failed(10.0, status(503, retry_after_s=3.2e7)) == 120.0
    assert origin.capacity(129.9) == 0


def test_a_throttle_halves_and_a_time_out_lowers_the_connections() -> None:
    """Both kinds of overload reach the limit; a reset does not."""
    origin = new_origin(ConnectionLimit(initial=8, maximum=64))
    origin.failed(0.0, failure("reset"))
    assert origin.limit.current == 8
    origin.failed(0.0, status(503))
    assert origin.limit.current == 4
    origin.failed(10.0, failure("timeout"))
    assert origin.limit.current == 2


def test_when_everything_fails_one_request_at_a_time_finds_out() -> None:
    """As many failures in a row as there are connections: the origin is down until one request gets through."""
    origin = new_origin()
    for _ in range(3):
        assert origin.failed(0.0, failure("connect")) == 0.0
    assert origin.capacity(0.0) == 4
    pause_s = origin.failed(0.0, failure("connect"))
    assert origin.is_down
    assert origin.capacity(pause_s) == 1
    origin.in_flight = 1
    assert origin.capacity(pause_s) == 0
    origin.in_flight = 0
    origin.succeeded(60.0)
    assert origin.capacity(60.0) == 4
    assert origin.progress_at == 60.0
