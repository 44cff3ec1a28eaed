"""Between the API server's JSON and values: specs, statuses, times, quantities, selectors. Pure but for `now`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

from cacheagent.kube.api import KubeError, Object
from cacheagent.kube.objects import KubeValue, LabelSelector

T = TypeVar("T", bound=KubeValue)

_QUANTITY: Final = re.compile(r"([+-]?\d+(?:\.\d*)?|[+-]?\.\d+)(?:([eE][+-]?\d+)|(m|k|Ki|Mi|Gi|Ti|Pi|Ei|[MGTPE]))?")
_UNITS: Final[dict[str, float]] = {"m": 0.001} | {
    unit: float(base**power)
    for base, suffix in ((1000, ""), (1024, "i"))
    for power, letter in enumerate("kMGTPE", start=1)
    for unit in (letter if not suffix else letter.upper() + suffix,)
}
_FRACTION: Final = re.compile(r"\.(\d+)")


class Unreadable(KubeError):
    """An object has not the form that this release knows: its CRD is another release's, or a newer one wrote it."""

    code = "kubernetes-unreadable"


# --- specs and statuses


def spec_of(item: Object, kind: type[T]) -> T:
    """The object's spec; unknown fields are ignored. Raises Unreadable."""
    return _part_of(item, "spec", kind)


def status_of(item: Object, kind: type[T]) -> T:
    """The object's status; one that is absent is empty. Raises Unreadable."""
    return _part_of(item, "status", kind)


def to_json(value: KubeValue) -> Object:
    """As it stands in an object that the server sends: camelCase, without what is default, lists and no tuples."""
    json: Object = msgspec.json.decode(msgspec.json.encode(value))
    return json


def _part_of(item: Object, part: str, kind: type[T]) -> T:
    try:
        return msgspec.convert(item.get(part) or {}, type=kind)
    except msgspec.ValidationError as error:
        name = item.get("metadata", {}).get("name", "")
        raise Unreadable(
            f'{item.get("kind", "object")} "{name}": its {part} cannot be read: {error}',
            hint="the chart's CRDs and this program should be of the same release",
        ) from error


# --- times


def now_text() -> str:
    """This moment as `metav1.Time`: `2026-01-31T12:00:00Z`."""
    return time_text(datetime.now(UTC))


def micro_time() -> str:
    """This moment as `metav1.MicroTime`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def time_text(moment: datetime) -> str:
    """As `metav1.Time`, whole seconds, UTC. Raises ValueError for a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_of(text: str) -> datetime:
    """RFC 3339, with any zone and any number of decimals (Go writes nanoseconds). Raises ValueError."""
    text = _FRACTION.sub(lambda found: "." + found[1][:6].ljust(6, "0"), text, count=1)
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment.astimezone(UTC)


# --- quantities


def quantity(text: str | float) -> float:
    """`141Gi`, `1.5G`, `500m`, `1e3` as a number of the base unit. Raises ValueError."""
    found = _QUANTITY.fullmatch(str(text))
    if not found:
        raise ValueError(f"{text!r} is no quantity")
    number, exponent, unit = found.groups()
    return float(number + (exponent or "")) * _UNITS.get(unit or "", 1.0)


# --- label selectors


def matches(selector: LabelSelector | None, labels: dict[str, str] | None) -> bool:
    """None matches nothing, an empty selector everything, as everywhere in Kubernetes. Raises ValueError for an
    operator that is none.
    """
    if selector is None:
        return False
    labels = labels or {}
    return has_labels(selector.match_labels, labels) and all(
        _expression_matches(expression, labels) for expression in selector.match_expressions
    )


def has_labels(wanted: dict[str, str], labels: dict[str, str] | None) -> bool:
    """A `nodeSelector`: all of them are there with these values."""
    return all((labels or {}).get(key) == value for key, value in wanted.items())


def _expression_matches(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    key, values = expression.get("key"), expression.get("values") or []
    match expression.get("operator"):
        case "In":
            return labels.get(str(key)) in values
        case "NotIn":
            return labels.get(str(key)) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case operator:
            raise ValueError(f"a label selector has no operator {operator!r}")


def labels_of(item: Object) -> dict[str, str]:
    """An object's labels; none are an empty dict."""
    labels: dict[str, str] = item["metadata"].get("labels") or {}
    return labels
