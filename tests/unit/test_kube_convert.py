"""Times, quantities and selectors as Kubernetes writes and reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from cacheagent.kube.convert import has_labels, labels_of, matches, micro_time, now_text, quantity, time_of, time_text
from cacheagent.kube.objects import LabelSelector

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T12:00:00Z",
        "2026-01-31T12:00:00.000000Z",
        "2026-01-31T12:00:00.000000000Z",
        "2026-01-31T12:00:00.0Z",
        "2026-01-31T14:00:00+02:00",
    ],
)
def test_times(text: str) -> None:
    """Go writes nanoseconds, and others write zones."""
    assert time_of(text) == NOON


def test_times_round_trip() -> None:
    """Whole seconds and UTC, whatever zone they came in."""
    assert time_text(NOON.astimezone(timezone(timedelta(hours=9)))) == "2026-01-31T12:00:00Z"
    assert abs(datetime.now(UTC) - time_of(now_text())) < timedelta(seconds=5)
    assert abs(datetime.now(UTC) - time_of(micro_time())) < timedelta(seconds=5)
    assert time_of("2026-01-31T12:00:00.123456789Z").microsecond == 123456


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-31T12:00:00", "2026-01-31"])
def test_what_is_no_time(text: str) -> None:
    """A time without a zone is none either."""
    with pytest.raises(ValueError, match=r".*"):
        time_of(text)
    with pytest.raises(ValueError, match="no time zone"):
        time_text(NOON.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("141Gi", 141 * 1024**3),
        ("1.5G", 1.5e9),
        ("500m", 0.5),
        ("1e3", 1000),
        ("12E", 12e18),
        ("1Ki", 1024),
        ("2k", 2000),
        (".5", 0.5),
        ("-1", -1),
        (7, 7),
    ],
)
def test_quantities(text: str | int, value: float) -> None:
    """Decimal, binary and exponent forms."""
    assert quantity(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "1KB", "1 Gi", "Gi", "1gi", "--1"])
def test_what_is_no_quantity(text: str) -> None:
    """Other unit systems are not guessed at."""
    with pytest.raises(ValueError, match="is no quantity"):
        quantity(text)


@pytest.mark.parametrize(
    ("expression", "labels", "does_match"),
    [
        ({"key": "a", "operator": "In", "values": ["1", "2"]}, {"a": "2"}, True),
        ({"key": "a", "operator": "In", "values": ["1", "2"]}, {"a": "3"}, False),
        ({"key": "a", "operator": "In", "values": ["1"]}, {}, False),
        ({"key": "a", "operator": "NotIn", "values": ["1"]}, {"a": "1"}, False),
        ({"key": "a", "operator": "NotIn", "values": ["1"]}, {"a": "2"}, True),
        ({"key": "a", "operator": "NotIn", "values": ["1"]}, {}, True),
        ({"key": "a", "operator": "Exists"}, {"a": ""}, True),
        ({"key": "a", "operator": "Exists"}, {"b": ""}, False),
        ({"key": "a", "operator": "DoesNotExist"}, {"b": ""}, True),
        ({"key": "a", "operator": "DoesNotExist"}, {"a": ""}, False),
    ],
)
def test_expressions(expression: dict[str, object], labels: dict[str, str], *, does_match: bool) -> None:
    """As `metav1.LabelSelector` says; an absent key is "not in"."""
    assert matches(LabelSelector(match_expressions=(expression,)), labels) is does_match


def test_selectors() -> None:
    """None matches nothing, an empty one everything; all parts must agree."""
    assert not matches(None, {"a": "1"})
    assert matches(LabelSelector(), None)
    both = LabelSelector(match_labels={"a": "1"}, match_expressions=({"key": "b", "operator": "Exists"},))
    assert matches(both, {"a": "1", "b": "x"})
    assert not matches(both, {"a": "1"})
    assert not matches(both, {"a": "2", "b": "x"})
    with pytest.raises(ValueError, match="no operator 'Near'"):
        matches(LabelSelector(match_expressions=({"key": "a", "operator": "Near"},)), {})


def test_labels() -> None:
    """A node selector asks for values; an object without labels has none."""
    assert has_labels({}, None)
    assert has_labels({"a": "1"}, {"a": "1", "b": "2"})
    assert not has_labels({"a": "1"}, {"b": "1"})
    assert labels_of({"metadata": {}}) == {}
    assert labels_of({"metadata": {"labels": {"a": "1"}}}) == {"a": "1"}
