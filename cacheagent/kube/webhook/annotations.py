"""What the annotations on a pod ask for, parsed and judged by themselves: nothing here knows which models there are.
Pure.

`docs/annotations.md` says the same to people.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeVar

from cacheagent.kube import names
from cacheagent.kube.uris import is_uri
from cacheagent.kube.webhook.refusal import PodRefused
from cacheagent.model import Value
from cacheagent.quantity import Duration

Mode = Literal["csi", "pv"]
Wait = Literal["mount", "gate", "init"]
View = Literal["files", "hf"]

MODES: Final[tuple[Mode, ...]] = ("csi", "pv")
WAITS: Final[tuple[Wait, ...]] = ("mount", "gate", "init")
VIEWS: Final[tuple[View, ...]] = ("files", "hf")

DEFAULT_GATE_DEADLINE_S: Final = 1800.0
LONGEST_GATE_DEADLINE_S: Final = 7 * 86400.0
MOST_MODELS: Final = 16
"""Of one pod. Chosen: more are a mistake in a template."""
MOST_GATE_NODES: Final = 10000

_WRITTEN_HERE: Final = frozenset({names.ADMITTED, names.DECISION, names.NOT_SERVED, names.WOKEN})
"""By us, never by a person; they come again with a second call, or with a pod that was copied."""
_OURS: Final = _WRITTEN_HERE | {
    names.MODEL, names.MOUNT_PATH, names.CONTAINERS, names.MODE, names.WAIT, names.VIEW, names.PAGE_CACHE,
    names.GATE_NODES, names.GATE_DEADLINE,
}  # fmt: skip
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PATH: Final = re.compile(r"/[^\x00-\x1f\x7f:,]*")
_PAIR: Final = re.compile(r"(?P<model>.*?)=(?P<path>/.*)")
_KERNELS: Final = ("/proc", "/sys", "/dev")
T = TypeVar("T", bound=str)


class Asked(Value):
    """What a pod asks for. `models`: names or URIs as written. `paths`: mount paths by the model as written; `base`
    for those without one. `containers` empty: the default. `page_cache` None: as the model says. Times in seconds."""

    models: tuple[str, ...]
    base: str = ""
    paths: dict[str, str] = {}
    containers: tuple[str, ...] = ()
    mode: Mode = "csi"
    wait: Wait = "mount"
    view: View = "files"
    page_cache: bool | None = None
    gate_nodes: int = 1
    gate_deadline_s: float = DEFAULT_GATE_DEADLINE_S

    def mount_path(self, model: str, name: str) -> str:
        """Where one model goes: as written, or at the base, below it by its name when there are several."""
        if path := self.paths.get(model):
            return path
        base = self.base or names.DEFAULT_MOUNT_PATH
        return base if len(self.models) == 1 else f"{base}/{name}"


def parse_annotations(annotations: Mapping[str, str]) -> Asked | None:
    """What they ask for; None when they name no model. Raises PodRefused."""
    if names.MODEL not in annotations:
        return None
    _check_known(annotations)
    models = _list(annotations, names.MODEL)
    if len(models) > MOST_MODELS:
        raise PodRefused(f"{names.MODEL} names {len(models)} models, and a pod may have {MOST_MODELS}")
    for model in models:
        if not is_uri(model) and not _NAME.fullmatch(model):
            raise PodRefused(
                f"{names.MODEL} has {model[:100]!r}; write a ModelCache's name (lower-case letters, digits and '-') "
                "or a URI (s3://…, hf://…)"
            )
    base, paths = _parse_paths(annotations.get(names.MOUNT_PATH, ""), models)
    asked = Asked(
        models=models,
        base=base,
        paths=paths,
        containers=_list(annotations, names.CONTAINERS) if names.CONTAINERS in annotations else (),
        mode=_choice(annotations, names.MODE, MODES),
        wait=_choice(annotations, names.WAIT, WAITS),
        view=_choice(annotations, names.VIEW, VIEWS),
        page_cache=_switch(annotations, names.PAGE_CACHE),
        gate_nodes=_gate_nodes(annotations),
        gate_deadline_s=_gate_deadline_s(annotations),
    )
    _check_together(asked, annotations)
    return asked


def near(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for what is written almost like something known, else empty."""
    close = difflib.get_close_matches(wrong, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _check_known(annotations: Mapping[str, str]) -> None:
    prefix = f"{names.GROUP}/"
    for key in annotations:
        if key.startswith(prefix) and key not in _OURS:
            written = [known.removeprefix(prefix) for known in sorted(_OURS - _WRITTEN_HERE)]
            meant = near(key.removeprefix(prefix), written) or "; see docs/annotations.md"
            raise PodRefused(f"the annotation {key[:200]!r} is not known{meant}")


def _list(annotations: Mapping[str, str], key: str) -> tuple[str, ...]:
    items = tuple(item.strip() for item in annotations[key].split(","))
    if "" in items:
        raise PodRefused(f"{key} is {annotations[key][:100]!r}: write one name, or several separated by commas")
    for item in items:
        if items.count(item) > 1:
            raise PodRefused(f"{key} names {item[:100]!r} twice; name it once")
    return items


def _choice(annotations: Mapping[str, str], key: str, choices: tuple[T, ...]) -> T:
    """The first choice is the default."""
    written = annotations.get(key, choices[0]).strip()
    for choice in choices:
        if choice == written:
            return choice
    raise PodRefused(f"{key} is {written[:100]!r}; it can be {', '.join(choices[:-1])} or {choices[-1]}")


def _switch(annotations: Mapping[str, str], key: str) -> bool | None:
    if key not in annotations:
        return None
    return _choice(annotations, key, ("true", "false")) == "true"


def _gate_nodes(annotations: Mapping[str, str]) -> int:
    written = annotations.get(names.GATE_NODES, "1").strip()
    if not re.fullmatch(r"[0-9]{1,6}", written) or not 1 <= int(written) <= MOST_GATE_NODES:
        raise PodRefused(f"{names.GATE_NODES} is {written[:100]!r}; write a number of nodes, 1 or more")
    return int(written)


def _gate_deadline_s(annotations: Mapping[str, str]) -> float:
    written = annotations.get(names.GATE_DEADLINE, "30m").strip()
    try:
        seconds = float(Duration.parse(written))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_GATE_DEADLINE_S:
        raise PodRefused(f"{names.GATE_DEADLINE} is {written[:100]!r}; write a time such as 30m or 2h, at most 7d")
    return seconds


def _parse_paths(written: str, models: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """(one path, paths by model); one of them is empty."""
    written = written.strip()
    if "," not in written and "=/" not in written:
        return (_path(written), {}) if written else ("", {})
    paths: dict[str, str] = {}
    for item in written.split(","):
        match = _PAIR.fullmatch(item.strip())
        if match is None or match["model"].strip() not in models or match["model"].strip() in paths:
            raise PodRefused(
                f"{names.MOUNT_PATH} has {item.strip()[:100]!r}; write one path, or model=/path for each model, "
                "separated by commas"
            )
        paths[match["model"].strip()] = _path(match["path"].strip())
    return "", paths


def _path(written: str) -> str:
    """Without a slash at its end."""
    if not _PATH.fullmatch(written):
        raise PodRefused(f"{names.MOUNT_PATH} is {written[:100]!r}; write an absolute path without ':'")
    path = written.rstrip("/")
    if not path or any(part in {"", ".", ".."} for part in path[1:].split("/")):
        raise PodRefused(
            f"{names.MOUNT_PATH} is {written[:100]!r}; write a path below / without empty, '.' or '..' parts"
        )
    if any(overlap(path, kernels) for kernels in _KERNELS):
        raise PodRefused(f"{names.MOUNT_PATH} is {written[:100]!r}, which belongs to the kernel; choose another path")
    return path


def overlap(path: str, other: str) -> bool:
    """Whether two normal paths are one, or one lies in the other."""
    return posixpath.commonpath((path, other)) in {path, other}


def _check_together(asked: Asked, annotations: Mapping[str, str]) -> None:
    several = len(asked.models) > 1
    for key in (names.GATE_NODES, names.GATE_DEADLINE):
        if key in annotations and asked.wait != "gate":
            raise PodRefused(f"{key} means something only with {names.WAIT}: gate; add that, or remove it")
    if asked.view == "hf" and several:
        raise PodRefused(
            f"{names.VIEW}: hf works for one model, and {names.MODEL} names {len(asked.models)}; use view files"
        )
    if asked.mode != "pv":
        return
    if asked.wait == "init":
        raise PodRefused(f"{names.MODE}: pv can't fill a volume later; use {names.WAIT}: gate, or mode csi")
    if asked.view == "hf":
        raise PodRefused(f"{names.MODE}: pv shows the plain files only; remove {names.VIEW}, or use mode csi")
    if asked.page_cache is not None:
        raise PodRefused(
            f"{names.PAGE_CACHE} has no effect with {names.MODE}: pv; set spec.pageCache of the model instead"
        )
    for model in asked.models:
        if is_uri(model):
            raise PodRefused(
                f"{names.MODE}: pv needs a ModelCache by its name, not a URI; use mode csi for {model[:200]}"
            )
