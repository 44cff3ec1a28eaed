"""The links on a pod's node: agent and driver, assignment, source, download, publish, mount, containers. Pure."""

from __future__ import annotations

from typing import Final

from cacheagent.kube.names import DRIVER, short_digest
from cacheagent.kube.ops.case import Case, Need, names_of, without_leader
from cacheagent.kube.ops.links import Link, broken, ok, waiting
from cacheagent.kube.ops.nodes import find_entry
from cacheagent.kube.ops.pod_facts import (
    WAIT_CONTAINER,
    describe_container,
    last_failed_mount,
    newest,
    waits_in_init,
)
from cacheagent.kube.ops.progress import find_condition, source_failure
from cacheagent.kube.plan.views import CacheNode

NOT_REGISTERED: Final = f"driver name {DRIVER} not found"


def node(case: Case) -> Link:
    node, agent = case.node, case.evidence.agent_on(case.node)
    if case.started:
        return ok("node", f"{node} has mounted it")
    kube_node = case.evidence.world.nodes.get(node)
    if kube_node is not None and not kube_node.ready:
        return broken("node", f"{node} is not ready", f"kubectl describe node {node}")
    if agent is None:
        return broken(
            "node",
            f"{node} is no cache node: no agent runs there",
            "does the chart select it (nodes, agent.nodeSelector), does agent.tolerations cover its taints?",
        )
    states = [describe_container(agent, name) for name in ("agent", "csi")]
    where = f"kubectl -n {agent['metadata']['namespace']} logs {agent['metadata']['name']}"
    for name, state in zip(("agent", "csi"), states, strict=True):
        if state:
            return broken("node", f"the {name} container on {node} does not run: {state}", f"{where} -c {name}")
    failed = last_failed_mount(case.evidence.events, case.needs)
    if failed is not None and NOT_REGISTERED in failed:
        return broken(
            "node",
            f"the kubelet of {node} does not know the driver {DRIVER}",
            f"{where} -c csi; is the chart's kubeletDir the kubelet's own?",
        )
    conditions = (agent.get("status") or {}).get("conditions") or ()
    if not any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions):
        return broken("node", f"the agent on {node} is not ready", f"{where} -c agent")
    return ok("node", f"agent and driver run on {node}")


def assignment(case: Case) -> Link:
    node = case.cache_node
    for need in case.needs:
        if case.started or case.is_here(need):
            continue
        if node is None or need.name not in node.assigned:
            if link := without_leader(case, "assignment"):
                return link
            return waiting("assignment", f"the controller has not assigned {need.name} to {case.node} yet", "wait")
        if link := _superseded(case, node, need):
            return link
        if not node.heard:
            return waiting("assignment", f"the agent on {case.node} has not taken in its assignment yet", "wait")
    return ok("assignment", f"{names_of(case)} belongs on {case.node}")


def _superseded(case: Case, node: CacheNode, need: Need) -> Link | None:
    """Older versions are never fetched: a pod that carries one gets it only where it still is."""
    told = node.assigned[need.name]
    if not need.short or not told.digest or told.digest[7:19] == need.short:
        return None
    return broken(
        "assignment",
        f"the pod carries version {need.short} of {need.name}, which {case.node} does not have; "
        f"the model has moved on to {short_digest(told.digest)}",
        "delete the pod: its owner makes one with the version of today",
    )


def source(case: Case) -> Link:
    for need in case.needs:
        facts = case.facts.get(need.name)
        if case.started or case.is_here(need) or facts is None:
            continue
        state = find_condition(facts.model.status.conditions, "Resolved")
        failed = source_failure(case.evidence.world, facts)
        if failed is not None:
            node, entry = failed
            return broken(
                "source", f"{node} can't look at the source of {need.name}: {entry.message or entry.code}",
                "mend the source, its credentials, or spec.source of the ModelCache; the agents go on trying",
            )  # fmt: skip
        if state is not None and state.status == "False":
            return broken("source", f"{need.name}: {state.message}", "change spec.digest, or the source")
        if not facts.digest:
            return waiting("source", f"the source of {need.name} is being listed", "wait")
    return ok("source", ", ".join(f"{each.name} is {case.digest(each)[7:19]}" for each in case.needs))


def download(case: Case) -> Link:
    for need in case.needs:
        if case.started or case.is_here(need) or case.cache_node is None:
            continue
        entry = find_entry(case.cache_node, need.name, case.digest(need))
        if entry is None or entry.phase == "pending":
            why = entry.message if entry is not None and entry.message else "it has not begun"
            return waiting("download", f"{need.name} on {case.node}: {why}", "wait; the agent goes on by itself")
        if entry.phase == "failed":
            return broken("download", f"{need.name} on {case.node}: {entry.message or entry.code}", _next(entry.code))
        if entry.phase != "ready":
            return waiting("download", f"{need.name} on {case.node}: {entry.message or entry.phase}", "wait")
    return ok("download", "every byte was fetched and verified")


def _next(code: str) -> str:
    if code == "no-room":
        return "unpin or evict something, use a larger disk, or a narrower spec.nodeSelector: cacheagent nodes"
    return "do what the sentence says; the agent tries again by itself"


def publish(case: Case) -> Link:
    for need in case.needs:
        if case.started or case.is_here(need) or case.cache_node is None:
            continue
        entry = find_entry(case.cache_node, need.name, case.digest(need))
        why = entry.message if entry is not None else ""
        return broken("publish", f"{need.name} was withdrawn on {case.node}: {why}", "it is repaired by itself")
    return ok("publish", f"{names_of(case)} is there")


def mount(case: Case) -> Link:
    if case.started:
        return ok("mount", "mounted read-only")
    if waits_in_init(case.pod):
        return waiting("mount", f"{WAIT_CONTAINER} has not seen the files yet", f"kubectl logs -c {WAIT_CONTAINER}")
    failed = last_failed_mount(case.evidence.events, case.needs)
    if failed is not None:
        return broken("mount", f"the kubelet could not mount it: {failed}", "its next try follows within two minutes")
    other = newest(case.evidence.events, "FailedMount")
    if other is not None:
        return broken("mount", f"another volume is missing: {str(other.get('message', ''))[:300]}", "not about weights")
    return waiting("mount", "the kubelet is about to mount it", "wait some seconds")


def containers(case: Case) -> Link:
    status = case.pod.get("status") or {}
    if status.get("phase") == "Succeeded":
        return ok("containers", "all have ended well")
    names = [each["name"] for each in (case.pod.get("spec") or {}).get("containers") or ()]
    for name in names:
        if state := describe_container(case.pod, name):
            pod = case.parsed.meta
            return broken(
                "containers",
                f"the weights are mounted; container {name} fails by itself: {state}",
                f"kubectl logs -n {pod.namespace} {pod.name} -c {name} --previous",
            )
    return ok("containers", "they run")
