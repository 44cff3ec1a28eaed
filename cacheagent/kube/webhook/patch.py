"""A JSON patch (RFC 6902) that adds, and puts one item of a list in the place of another, written down beside a working
copy, so that later steps see the earlier ones. Pure."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

from cacheagent.kube.webhook.pod import Path, Pod
from cacheagent.kube.webhook.refusal import PodRefused

END: Final = "-"
"""As the last step of a path: behind the list's last item."""
FIRST: Final = "0"
_IN_LISTS: Final = frozenset({END, FIRST})


class Patch:
    """`pod` is the working copy; `operations` is what makes it from the original."""

    def __init__(self, pod: Pod) -> None:
        self.pod: Pod = deepcopy(pod)
        self.operations: list[dict[str, Any]] = []

    def put(self, path: Path, value: Any) -> None:
        """Add `value` there, with what is missing on the way in the same operation: a list where `END` or `FIRST`
        follows, else an object. What a list holds moves up; a member that is there is replaced. Raises PodRefused for
        a way that leads through a text or a number."""
        here: Any = self.pod
        for depth, step in enumerate(path[:-1], start=1):
            below = self._child(here, step, path)
            if below is None:
                self._write(here, path[:depth], _nested(path[depth:], value))
                return
            here = below
        self._write(here, path, value)

    def replace(self, path: Path, value: Any) -> None:
        """Put `value` in the place of a list's item that is there. Raises PodRefused."""
        here: Any = self.pod
        for step in path[:-1]:
            here = self._child(here, step, path)
        if not isinstance(here, list) or not path[-1].isdigit() or int(path[-1]) >= len(here):
            raise _no_way(path)
        here[int(path[-1])] = deepcopy(value)
        self.operations.append({"op": "replace", "path": pointer(path), "value": value})

    def _child(self, here: Any, step: str, path: Path) -> Any:
        if isinstance(here, dict):
            return here.get(step)
        if isinstance(here, list) and step.isdigit() and int(step) < len(here):
            return here[int(step)]
        raise _no_way(path)

    def _write(self, here: Any, path: Path, value: Any) -> None:
        step = path[-1]
        if isinstance(here, dict) and step not in _IN_LISTS:
            here[step] = deepcopy(value)
        elif isinstance(here, list) and step in _IN_LISTS:
            here.insert(len(here) if step == END else int(step), deepcopy(value))
        else:
            raise _no_way(path)
        self.operations.append({"op": "add", "path": pointer(path), "value": value})


def pointer(path: Path) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)


def _nested(steps: Path, value: Any) -> Any:
    for step in reversed(steps):
        value = [value] if step in _IN_LISTS else {step: value}
    return value


def _no_way(path: Path) -> PodRefused:
    return PodRefused(f"{'.'.join(path[:-1])} of the pod is not what the pod's schema says")
