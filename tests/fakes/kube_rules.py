"""What an API server does to JSON, as pure functions: selectors, merge patch, JSON patch, server-side apply."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from cacheagent.kube.api import KubeRefused, Object

T = TypeVar("T")

Path = tuple[str, ...]
"""Keys from the object's root to a field; lists are leaves."""

_SET_TERM = re.compile(r"\s*([^\s!=,()]+)\s+(in|notin)\s*\(([^)]*)\)\s*(?:,|$)")
_TERM = re.compile(r"\s*(!?)\s*([^\s!=,()]+)\s*(?:(==|=|!=)\s*([^\s,()]*))?\s*(?:,|$)")


def copied(value: T) -> T:
    """A deep copy that also proves that the value is JSON."""
    copy: T = msgspec.json.decode(msgspec.json.encode(value))
    return copy


def matches_labels(selector: str, labels: dict[str, str]) -> bool:
    """A label selector as it stands in a URL. Raises KubeRefused for what is none."""
    position = 0
    while position < len(selector):
        if found := _SET_TERM.match(selector, position):
            key, operator, values = found.groups()
            inside = labels.get(key) in [value.strip() for value in values.split(",")]
            agrees = inside if operator == "in" else not inside
        elif found := _TERM.match(selector, position):
            absent, key, operator, value = found.groups()
            if operator is None:
                agrees = (key in labels) is not bool(absent)
            else:
                agrees = (labels.get(key) == value) is (operator != "!=")
        else:
            raise KubeRefused(f"unable to parse label selector {selector!r}", status=400)
        if not agrees:
            return False
        position = found.end()
    return True


def matches_fields(selector: str, item: Object, supported: frozenset[str]) -> bool:
    """A field selector. Raises KubeRefused for a field that the server has no selector for."""
    for term in filter(None, selector.split(",")):
        negated = "!=" in term
        field, _, wanted = term.replace("==", "=").replace("!=", "=").partition("=")
        if field not in supported:
            raise KubeRefused(f"field label not supported: {field}", status=400)
        found: Any = item
        for key in field.split("."):
            found = found.get(key, {}) if isinstance(found, dict) else {}
        if ((found or "") == wanted) is negated:
            return False
    return True


def merge_patched(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patched(merged.get(key), value)
    return merged


def json_patched(target: Object, operations: list[Object]) -> Object:
    """RFC 6902. Raises KubeRefused where a path is missing or a test fails."""
    result = copied(target)
    for operation in operations:
        try:
            _step(result, operation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise KubeRefused(
                f"the server rejected our request due to an error in our request: {operation} ({error!r})", status=422
            ) from error
    return result


def _step(root: Any, operation: Object) -> None:
    kind, path = operation["op"], operation["path"]
    if kind in {"copy", "move"}:
        holder, key = _holder(root, operation["from"])
        value = copied(holder[key])
        if kind == "move":
            del holder[key]
    else:
        value = copied(operation.get("value"))
    holder, key = _holder(root, path)
    if kind == "test":
        if holder[key] != value:
            raise ValueError(f"testing value {path} failed")
    elif kind == "remove":
        del holder[key]
    elif kind == "replace":
        holder[key]
        holder[key] = value
    elif isinstance(holder, list):
        holder.insert(len(holder) if key == "-" else key, value)
    else:
        holder[key] = value


def _holder(root: Any, pointer: str) -> tuple[Any, Any]:
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])
    for part in parents:
        root = root[int(part)] if isinstance(root, list) else root[part]
    return root, (int(last) if isinstance(root, list) and last != "-" else last)


def leaves(value: Object, above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field with its value. Lists are atomic, except finalizers, which are a set."""
    for key, inner in value.items():
        path = (*above, key)
        if path == ("metadata", "finalizers"):
            yield from (((*path, item), item) for item in inner)
        elif isinstance(inner, dict) and inner:
            yield from leaves(inner, path)
        else:
            yield path, inner


def applied(current: Object, wanted: Object, gone: set[Path]) -> Object:
    """`current` with the fields of `wanted`, and without those at `gone`."""
    result = copied(current)
    for path in gone:
        _remove(result, path)
    for path, value in leaves(wanted):
        holder: Any = result
        for key in path[:-1]:
            empty: Any = [] if key == "finalizers" else {}
            holder = holder.setdefault(key, empty)
        if isinstance(holder, list):
            holder.extend([value] if value not in holder else [])
        elif value != {} or not isinstance(holder.get(path[-1]), dict):
            holder[path[-1]] = copied(value)
    return result


def _remove(root: Any, path: Path) -> None:
    holders = [root]
    for key in path[:-1]:
        if not isinstance(holders[-1], dict) or key not in holders[-1]:
            return
        holders.append(holders[-1][key])
    if isinstance(holders[-1], list):
        holders[-1][:] = [item for item in holders[-1] if item != path[-1]]
    else:
        holders[-1].pop(path[-1], None)
    for holder, key, inner in zip(holders[-2::-1], path[-2::-1], holders[:0:-1], strict=True):
        if not inner:
            del holder[key]
