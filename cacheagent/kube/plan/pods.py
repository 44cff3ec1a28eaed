"""What is done for pods: gates are lifted, those that wait on their node are woken, and both are told why. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from cacheagent.errors import UsageError
from cacheagent.kube.api import PODS, Object
from cacheagent.kube.names import GATE, GATE_DEADLINE, GATE_NODES, WAIT, WOKEN, model_name_of_uri
from cacheagent.kube.plan.changes import POD_WAITS, Change, Note, Regarding
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.on_demand import wanted_of
from cacheagent.kube.plan.schedulable import could_take
from cacheagent.kube.plan.times import written_time
from cacheagent.kube.plan.views import CacheNode, Pod
from cacheagent.kube.plan.world import World
from cacheagent.kube.uris import find_rule
from cacheagent.quantity import Duration

GATE_DEADLINE_S: Final = 1800.0
"""Where the pod names none. The same as in the webhook's documentation."""
MOST_GATE_NODES: Final = 10000
LONGEST_GATE_S: Final = 7 * 86400.0
"""The webhook's own limits. Annotations can be edited after it has judged them, and one pod's must not end the plan of
all: a time beyond the calendar, or digits that are no number, would."""


@dataclass(slots=True)
class PodPlan:
    """`waiting`: as in `Memory`. `notices`: told however often they come; whoever writes events knows what was said."""

    changes: list[Change] = field(default_factory=list)
    notices: list[Note] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    deadline: float = float("inf")


def plan_pods(
    world: World,
    facts: Mapping[str, Facts],
    nodes: Mapping[str, CacheNode],
    assigned: Mapping[str, Collection[str]],
    now: float,
) -> PodPlan:
    """Gated pods, and pods that wait on a node of theirs. `assigned`: models by node, as they are planned: what is
    written already may be behind. A node with an agent that has no object yet may get anything."""
    found = PodPlan()
    undecided = {agent.node for agent in world.agents.values()} - nodes.keys()
    for pod in world.pods.values():
        if pod.meta.deleting or pod.over:
            continue
        if pod.gated:
            needs = needs_of(pod, world, facts)
            fitting = [name for name, node in world.nodes.items() if could_take(node, pod)]
            ready = [name for name in fitting if name in nodes and _has(nodes[name], needs)]
            hopeful = [name for name in fitting if name in undecided or _will_have(nodes, assigned, name, needs)]
            _plan_gate(found, Prospect(pod, needs, fitting, ready, hopeful), nodes, now)
        elif pod.node and pod.phase == "Pending":
            _plan_waking(found, world, facts, nodes.get(pod.node), pod, now)
    return found


# --- waking


def _plan_waking(
    found: PodPlan,
    world: World,
    facts: Mapping[str, Facts],
    node: CacheNode | None,
    pod: Pod,
    now: float,
) -> None:
    """The kubelet's pod worker looks again only every 10-15 s; any change of the pod's metadata wakes it. A pod that
    found everything ready is left alone, so only one that was seen waiting is woken, and only once."""
    if WOKEN in pod.meta.annotations or not pod.inline or pod.meta.annotations.get(WAIT) == "init":
        return
    uid, needs = pod.meta.uid, needs_of(pod, world, facts)
    if node is None or not _has(node, needs):
        found.waiting.add(uid)
        share = _share(node, needs) if node else 0.0
        if 0 < share < 1:  # the kubelet's own events are silent while its call is held, for two minutes each
            why = f"waits for {_names(needs)}: {share:.0%} on {pod.node}"
            found.notices.append(_note(pod, "Normal", "WaitingForWeights", why))
    elif uid in world.memory.waiting or world.memory.fresh:
        body = {"metadata": {"annotations": {WOKEN: written_time(now)}}}
        found.waiting.add(uid)  # until the write is seen
        found.changes.append(_patch(pod, body))


def needs_of(pod: Pod, world: World, facts: Mapping[str, Facts]) -> list[tuple[str, str]]:
    """(model, digest) for each of its volumes: the version that it carries, else the one in force; empty if there is
    none."""
    carried = {uses.uri or uses.model: uses.digest for uses in pod.inline if uses.digest}
    needs = []
    for wanted in wanted_of(pod):
        name = _model_of(world, wanted.uri, wanted.namespace) if wanted.uri else wanted.model
        digest = carried.get(wanted.uri or wanted.model, "") or carried.get(name, "")
        needs.append((name, digest or (facts[name].digest if name in facts else "")))
    return needs


def _model_of(world: World, uri: str, namespace: str) -> str:
    try:
        permit = find_rule(uri, namespace, world.settings.allow_list)
    except UsageError:
        permit = None
    return permit.model if permit else model_name_of_uri(uri)


def _has(node: CacheNode, needs: Iterable[tuple[str, str]]) -> bool:
    return all(digest in node.ready for _, digest in needs)


# --- gates


class Prospect(NamedTuple):
    """What a gated pod may hope for. `needs`: as of `needs_of`. Names of nodes that could take it, of those among them
    that have all its models, and of those that will."""

    pod: Pod
    needs: list[tuple[str, str]]
    fitting: list[str]
    ready: list[str]
    hopeful: list[str]


def _plan_gate(found: PodPlan, prospect: Prospect, nodes: Mapping[str, CacheNode], now: float) -> None:
    pod, needs, ready = prospect.pod, prospect.needs, prospect.ready
    wanted = _nodes_wanted(pod)
    deadline = pod.meta.created_at + _deadline_s(pod)
    if len(ready) >= wanted:
        _lift(found, pod, "Normal", "WeightsReady", f"{_names(needs)} ready on {len(ready)} nodes: may be scheduled")
    elif not prospect.fitting:
        why = "no existing node could take this pod: it may be scheduled, so that a new node can come"
        _lift(found, pod, "Normal", "NoNodeFits", why)
    elif not prospect.hopeful:
        why = f"no node that could take this pod is to hold {_names(needs)}: fetched where the pod lands"
        _lift(found, pod, "Normal", "FetchedOnDemand", why)
    elif now >= deadline:
        why = f"{_names(needs)} ready on {len(ready)} of {wanted} nodes at the deadline: may be scheduled anyway"
        _lift(found, pod, "Warning", "GateDeadline", why)
    else:
        found.deadline = min(found.deadline, deadline)
        progress = _progress((nodes[name] for name in prospect.fitting if name in nodes), needs)
        so_far = f"ready on {len(ready)} of {wanted} nodes{progress}"
        why = f"waits for {_names(needs)}: {so_far}; until {written_time(deadline)}"
        found.notices.append(_note(pod, "Normal", "WaitingForWeights", why))


def _nodes_wanted(pod: Pod) -> int:
    try:
        return min(max(1, int(pod.meta.annotations.get(GATE_NODES, "1"))), MOST_GATE_NODES)
    except ValueError:
        return 1


def _deadline_s(pod: Pod) -> float:
    try:
        return min(float(Duration.parse(pod.meta.annotations[GATE_DEADLINE])), LONGEST_GATE_S)
    except (KeyError, ValueError):
        return GATE_DEADLINE_S


def _will_have(
    nodes: Mapping[str, CacheNode],
    assigned: Mapping[str, Collection[str]],
    node: str,
    needs: Iterable[tuple[str, str]],
) -> bool:
    planned = assigned.get(node, ())
    return node in nodes and all(model in planned or digest in nodes[node].ready for model, digest in needs)


def _progress(nodes: Iterable[CacheNode], needs: Sequence[tuple[str, str]]) -> str:
    """Of the node that is furthest."""
    best = max((_share(node, needs) for node in nodes), default=0.0)
    return f", {best:.0%} on the furthest" if 0 < best < 1 else ""


def _share(node: CacheNode, needs: Iterable[tuple[str, str]]) -> float:
    """How much of all that is needed is there."""
    done = total = 0
    for name in {model for model, _ in needs}:
        for entry in node.entries.get(name, ()):
            done, total = done + entry.bytes_done, total + entry.size_bytes
    return done / total if total else 0.0


def _names(needs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(model for model, _ in needs)


def _lift(found: PodPlan, pod: Pod, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
    """The list is replaced whole, so only if nobody else touched the pod meanwhile."""
    others: list[Object] = [{"name": gate} for gate in pod.gates if gate != GATE]
    body = {"metadata": {"resourceVersion": pod.meta.resource_version}, "spec": {"schedulingGates": others}}
    found.changes.append(_patch(pod, body, _note(pod, kind, reason, message)))


def _patch(pod: Pod, body: Object, *notes: Note) -> Change:
    return Change(
        verb="patch",
        resource=PODS,
        name=pod.meta.name,
        namespace=pod.meta.namespace,
        body=body,
        urgency=POD_WAITS,
        notes=notes,
    )


def _note(pod: Pod, kind: Literal["Normal", "Warning"], reason: str, message: str) -> Note:
    return Note(Regarding(PODS, pod.meta.name, pod.meta.namespace, pod.meta.uid), kind, reason, message)
