"""How long pods wait for their weights, and how many GPUs with them: by what Kubernetes itself writes on pods, so that
a restart of ours changes no figure. Pure.

A pod has its weights when its volumes are mounted (`PodReadyToStartContainers`: the sandbox is made after the volumes),
or, with `wait: init`, when the container that waits has ended well. Times are whole seconds there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from cacheagent.kube.plan.views import Pod

STAGES: Final = ("gate", "scheduling", "node")
"""Where a pod waits: behind our scheduling gate, for a node, on its node for the weights."""


class Start(NamedTuple):
    """A pod got its weights. `waited_s`: since it was made; `held_s`: since it had its node, and with that its GPUs."""

    waited_s: float
    held_s: float
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Pods that have no weights yet, by stage; GPUs that those on a node hold; who got theirs since the look before,
    and which pods those are."""

    pods: dict[str, int]
    gpus_held: int
    started: tuple[Start, ...]
    started_pods: tuple[Pod, ...] = ()


class PodWaits:
    """Remembers whom it has counted. What had its weights at the first look is history, and is not counted."""

    def __init__(self) -> None:
        self._counted: frozenset[str] | None = None

    def look(self, pods: Iterable[Pod]) -> Waits:
        """All pods that the webhook rewrote, as they are now."""
        known = self._counted or frozenset()
        waiting, gpus_held, ready, started = dict.fromkeys(STAGES, 0), 0, set[str](), list[Pod]()
        for pod in pods:
            if pod.weights_at:
                ready.add(pod.meta.uid)
                if self._counted is not None and pod.meta.uid not in known:
                    started.append(pod)
            elif pod.meta.uid in known:
                ready.add(pod.meta.uid)  # it had them: its sandbox is made anew, or gone at its end
            elif not pod.over and not pod.meta.deleting:
                waiting[_stage(pod)] += 1
                gpus_held += pod.gpus if pod.node else 0
        self._counted = frozenset(ready)
        return Waits(
            pods=waiting, gpus_held=gpus_held, started=tuple(map(_start, started)), started_pods=tuple(started)
        )


def _stage(pod: Pod) -> str:
    if pod.gated:
        return "gate"
    return "node" if pod.node else "scheduling"


def _start(pod: Pod) -> Start:
    return Start(
        waited_s=max(0.0, pod.weights_at - pod.meta.created_at),
        held_s=max(0.0, pod.weights_at - pod.scheduled_at) if pod.scheduled_at else 0.0,
        gpus=pod.gpus,
    )
