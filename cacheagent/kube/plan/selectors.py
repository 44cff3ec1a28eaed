"""Kubernetes' ways to select by labels, as its own components evaluate them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cacheagent.kube.objects import LabelSelector


def has_labels(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """All of these, with these values. An empty selector selects everything."""
    return wanted.items() <= labels.items()


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """`metav1.LabelSelector`. An expression that nobody understands selects nothing."""
    return has_labels(selector.match_labels, labels) and all_hold(selector.match_expressions, labels)


def all_hold(expressions: Iterable[Mapping[str, Any]], labels: Mapping[str, str]) -> bool:
    """Every requirement (`key`, `operator`, `values`) of a label selector or of a node selector term holds."""
    return all(_holds(each, labels) for each in expressions)


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    label = labels.get(str(expression.get("key", "")))
    values = [str(value) for value in expression.get("values") or ()]
    match expression.get("operator"):
        case "In":
            return label is not None and label in values
        case "NotIn":
            return label is None or label not in values
        case "Exists":
            return label is not None
        case "DoesNotExist":
            return label is None
        case "Gt":
            return _is_above(label, values)
        case "Lt":
            return len(values) == 1 and label is not None and _is_above(values[0], [label])
        case _:
            return False


def _is_above(number: str | None, limits: list[str]) -> bool:
    try:
        return number is not None and len(limits) == 1 and int(number) > int(limits[0])
    except ValueError:
        return False
