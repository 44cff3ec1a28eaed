"""What a pod's own status and events say: whether its volumes are there, which container fails, what the kubelet told.
Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from cacheagent.kube.api import Object
from cacheagent.kube.names import WAIT

WAIT_CONTAINER: Final = "cacheagent-wait"
"""The init container of `wait: init`."""
_BEFORE_MOUNTS: Final = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons of waiting that say nothing: everything else comes after the volumes are mounted."""
_WELL: Final = frozenset({"ContainerCreating", "PodInitializing", ""})


class Volume(Protocol):
    """What is asked of a pod's model here."""

    @property
    def volume(self) -> str:
        """Name of its volume in the pod; empty for a claim."""


def has_started(pod: Object) -> bool:
    """Whether the kubelet has mounted the pod's volumes and the weights are in them: images are pulled and containers
    started only afterwards. With `wait: init` the volume is there at once and filled later."""
    status = pod.get("status") or {}
    if status.get("phase") in {"Succeeded", "Failed"}:
        return True
    if waits_in_init(pod):
        return False
    every = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    others = [each for each in every if each.get("name") != WAIT_CONTAINER]
    return any(_began(each) for each in others)


def waits_in_init(pod: Object) -> bool:
    """Whether its init container still waits for the weights, or has not even begun to."""
    annotations = pod["metadata"].get("annotations") or {}
    if annotations.get(WAIT) != "init":
        return False
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or ()
    ours = next((each for each in statuses if each.get("name") == WAIT_CONTAINER), None)
    if ours is None:
        return True
    ended = (ours.get("state") or {}).get("terminated") or {}
    return bool(ended.get("exitCode") != 0)


def _began(status: Any) -> bool:
    state = status.get("state") or {}
    if "running" in state or "terminated" in state or status.get("lastState"):
        return True
    return (state.get("waiting") or {}).get("reason", "") not in _BEFORE_MOUNTS


def describe_container(pod: Object, name: str) -> str:
    """Why a container does not run; empty when it does, has ended well, or has not begun."""
    status = pod.get("status") or {}
    every = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    found = next((each for each in every if each.get("name") == name), None)
    if found is None:
        return ""
    state, last = found.get("state") or {}, (found.get("lastState") or {}).get("terminated") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    if waiting.get("reason", "") not in _WELL:
        before = f" after {_ending(last)}" if last else ""
        said = f": {waiting['message'][:200]}" if waiting.get("message") and not last else ""
        return f"{waiting['reason']}{before}{said}"
    if ended and (ended.get("exitCode") or ended.get("reason") == "OOMKilled"):
        return _ending(ended)
    return ""


def _ending(ended: Any) -> str:
    reason = ended.get("reason") or ""
    shown = f" ({reason})" if reason and reason != "Error" else ""
    return f"exit code {ended.get('exitCode')}{shown}"


def newest(events: Sequence[Object], reason: str) -> Object | None:
    """The last event of that reason."""
    return next((each for each in reversed(events) if each.get("reason") == reason), None)


def last_failed_mount(events: Sequence[Object], needs: Iterable[Volume]) -> str | None:
    """The kubelet's last sentence about a volume of ours, without what it puts around it."""
    ours = [f'"{need.volume}"' for need in needs if need.volume]
    for event in reversed(events):
        message = str(event.get("message", ""))
        if event.get("reason") == "FailedMount" and any(volume in message for volume in ours):
            _, found, sentence = message.rpartition("desc = ")
            return (sentence if found else message.rpartition(" : ")[2])[:400]
    return None
