"""Why a pod has its weights or not: every link of the chain, and the first that is not there. Pure.

The order is that of the pod's life. What a link can't find out from objects it takes from the pod's events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cacheagent.errors import UsageError
from cacheagent.kube.api import Object
from cacheagent.kube.names import (
    DRIVER,
    GATE,
    GROUP,
    INJECTED_LABEL,
    MODEL,
    WAIT,
    claim_name,
    short_digest,
)
from cacheagent.kube.ops.evidence import Evidence
from cacheagent.kube.ops.links import CHAIN, Explanation, Link
from cacheagent.kube.ops.nodes import find_entry
from cacheagent.kube.ops.pod_facts import (
    WAIT_CONTAINER,
    describe_container,
    has_started,
    last_failed_mount,
    newest,
    waits_in_init,
)
from cacheagent.kube.ops.progress import find_condition, source_failure
from cacheagent.kube.plan import World
from cacheagent.kube.plan.facts import Facts, facts_of
from cacheagent.kube.plan.times import seconds_of
from cacheagent.kube.plan.views import CacheNode, claims_of, parse_pod
from cacheagent.kube.uris import is_uri, parse_uri
from cacheagent.kube.webhook.annotations import near
from cacheagent.outlook import duration_text

NOT_REGISTERED: Final = f"driver name {DRIVER} not found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One model of the pod: `written` as in the annotation, `name` of its ModelCache (empty while nobody knows).
    `short`: 12 hex digits of the version that the pod carries, empty if it carries none."""

    written: str
    name: str
    short: str = ""
    volume: str = ""


class _Case:
    """The evidence, with what several links need of it."""

    def __init__(self, evidence: Evidence, pod: Object) -> None:
        self.evidence = evidence
        self.pod = pod
        self.parsed = parse_pod(pod)
        self.facts = facts_of(evidence.world)
        self.node = self.parsed.node
        self.cache_node = evidence.world.cache_nodes.get(self.node)
        self.started = has_started(pod)
        self.needs = _needs(self)

    def digest(self, need: Need) -> str:
        """The version that this pod is to get: the one that it carries, else the one in force."""
        facts = self.facts.get(need.name)
        known = [facts.digest, *facts.previous] if facts is not None else []
        if not need.short:
            return known[0] if known else ""
        on_node = self.cache_node.on_disk if self.cache_node is not None else frozenset()
        return next((each for each in [*known, *sorted(on_node)] if each[7:19] == need.short), "")

    def is_here(self, need: Need) -> bool:
        """Verified, published and mountable on the pod's node."""
        digest = self.digest(need)
        return self.cache_node is not None and bool(digest) and digest in self.cache_node.ready


def explain(evidence: Evidence) -> Explanation:
    """Walk the chain; what lies behind the first link that is not there is not looked at."""
    links: list[Link] = []
    if evidence.pod is None:
        links = [_no_pod(evidence)]
        if links[0].name != "annotation":
            links.insert(0, Link(name="annotation", mark="ok", text=f"asks for {_asked(evidence.template)}"))
    else:
        case = _Case(evidence, evidence.pod)
        for name in CHAIN:
            links.append(_LINKS[name](case))
            if links[-1].mark in {"waiting", "broken"}:
                break
    walked = {link.name for link in links}
    links += [Link(name=name, mark="unseen") for name in CHAIN if name not in walked]
    links.sort(key=lambda link: CHAIN.index(link.name))
    return Explanation(subject=evidence.subject, namespace=evidence.namespace, links=tuple(links))


# --- a workload without pods


def _asked(template: Mapping[str, Any]) -> str:
    annotations: Mapping[str, str] = (template.get("metadata") or {}).get("annotations") or {}
    return annotations.get(MODEL, "")


def _no_pod(evidence: Evidence) -> Link:
    """The webhook's refusal stands in the events of whoever makes the pods."""
    if not _asked(evidence.template):
        return _no_annotation(evidence.subject, (evidence.template.get("metadata") or {}).get("annotations") or {})  # type: ignore[attr-defined]
    failed = newest(evidence.events, "FailedCreate")
    if failed is None:
        return _waiting("webhook", "there is no pod yet", "kubectl describe it: its controller says why it makes none")
    message = str(failed.get("message", ""))
    _, refused, sentence = message.partition("denied the request: ")
    if refused:
        what = "authorization" if "ModelCache" in sentence or "may not use" in sentence else "webhook"
        return _broken(what, f"the webhook refuses its pods: {sentence}", "do what the sentence says")
    if "failed calling webhook" in message:
        return _broken(
            "webhook",
            f"the webhook does not answer, so no pod with the annotation is made: {message[-300:]}",
            _look_at_controllers(evidence),
        )
    return _broken("webhook", f"no pod is made: {message[:400]}", "this is not about weights; do what it says")


# --- the links


def _annotation(case: _Case) -> Link:
    if case.needs:
        return _ok("annotation", f"asks for {', '.join(need.written for need in case.needs)}")
    return _no_annotation(case.evidence.subject, case.parsed.meta.annotations)


def _no_annotation(subject: str, annotations: Mapping[str, str]) -> Link:
    others = sorted(key for key in annotations if key.startswith(f"{GROUP}/"))
    has = f" (it has {', '.join(others[:3])})" if others else ""
    return _broken(
        "annotation",
        f"{subject} has no annotation {MODEL}{has} and no volume of the cache",
        f"write {MODEL}: NAME into the pod template, not into the workload's own metadata; new pods get the weights",
    )


def _webhook(case: _Case) -> Link:
    volumes = ", ".join(need.volume for need in case.needs if need.volume)
    if case.parsed.meta.labels.get(INJECTED_LABEL) == "true":
        return _ok("webhook", f"rewrote it: {volumes or 'a claim'}")
    if case.parsed.inline or case.parsed.claims:
        return _ok("webhook", f"not needed: the volume {volumes} was written by hand")
    return _broken(
        "webhook",
        "the pod names a model and has no volume of it: the webhook did not see it when it was created",
        "it sees new pods only, and none in excluded namespaces: look at `kubectl get mutatingwebhookconfigurations`, "
        "then delete the pod, so that its owner makes it anew",
    )


def _authorization(case: _Case) -> Link:
    namespace = case.evidence.namespace
    for need in case.needs:
        if case.is_here(need) and case.started:
            continue
        if refusal := _refusal(case, need):
            return _broken("authorization", refusal, "ask the administrator, or name another model")
        facts = case.facts.get(need.name)
        if facts is None and is_uri(need.written):
            if case.node and (link := _no_leader(case, "authorization")):
                return link
            if case.node:
                return _waiting("authorization", f"the controller has not yet judged {need.written}", "wait a moment")
            continue  # judged on its node
        if facts is None:
            meant = near(need.written, case.facts)
            return _broken(
                "authorization",
                f"there is no ModelCache {need.written!r}{meant}",
                "create it, or correct the annotation in the pod template",
            )
        if not permits(case.evidence.world, facts, namespace):
            return _broken(
                "authorization",
                f"namespace {namespace!r} may not use the model {need.name!r}",
                "have the namespace added to spec.allowedNamespaces of the ModelCache",
            )
    return _ok("authorization", f"namespace {namespace} may use {_names(case)}")


def permits(world: World, facts: Facts, namespace: str) -> bool:
    """As the controller has resolved it for the nodes, labels of namespaces included; else by names alone."""
    for node in world.cache_nodes.values():
        assigned = node.assigned.get(facts.name)
        if assigned is not None:
            return assigned.namespaces is None or namespace in assigned.namespaces
    allowed = facts.model.spec.allowed_namespaces
    return facts.permits(namespace) or (allowed is not None and allowed.selector is not None)


def _refusal(case: _Case, need: Need) -> str:
    refusals = case.cache_node.spec.refusals if case.cache_node is not None else ()
    for each in refusals:
        if each.namespace == case.evidence.namespace and each.model in {need.written, need.name}:
            return each.message
    return ""


def _scheduling(case: _Case) -> Link:
    if case.node:
        return _ok("scheduling", f"on {case.node}")
    gates = case.parsed.gates
    if GATE in gates:
        if link := _no_leader(case, "scheduling"):
            return link
        told = newest(case.evidence.events, "WaitingForWeights")
        text = str(told["message"]) if told is not None else f"waits for {_names(case)}"
        return _waiting(
            "scheduling",
            f"it is held by the gate: {text}",
            f"`cacheagent cluster status {case.needs[0].name}` says what the nodes wait for",
        )
    if gates:
        return _waiting("scheduling", f"another gate holds it: {', '.join(gates)}", "whoever put it there takes it off")
    conditions = (case.pod.get("status") or {}).get("conditions") or ()
    scheduled: Object = next((each for each in conditions if each.get("type") == "PodScheduled"), {})
    if scheduled.get("reason") == "Unschedulable":
        message = str(scheduled.get("message", ""))
        return _broken("scheduling", f"the scheduler finds no node for it: {message}", _next_unschedulable(message))
    return _waiting("scheduling", "the scheduler has not looked at it yet", "does kube-scheduler run?")


def _next_unschedulable(message: str) -> str:
    if "PersistentVolume" in message or "volume node affinity" in message:
        return "no node that it fits has this version: warm one (cacheagent warm), or use cacheagent.io/mode: csi"
    if f"{GROUP}/cold" in message:
        return "nodes are cold until their required models are there: cacheagent nodes"
    return "this is not about weights: its requests, node selector, affinity and tolerations decide"


def _node(case: _Case) -> Link:
    node, agent = case.node, case.evidence.agent_on(case.node)
    if case.started:
        return _ok("node", f"{node} has mounted it")
    kube_node = case.evidence.world.nodes.get(node)
    if kube_node is not None and not kube_node.ready:
        return _broken("node", f"{node} is not ready", f"kubectl describe node {node}")
    if agent is None:
        return _broken(
            "node",
            f"{node} is no cache node: no agent runs there",
            "does the chart select it (nodes, agent.nodeSelector), does agent.tolerations cover its taints?",
        )
    broken = [describe_container(agent, name) for name in ("agent", "csi")]
    where = f"kubectl -n {agent['metadata']['namespace']} logs {agent['metadata']['name']}"
    for name, state in zip(("agent", "csi"), broken, strict=True):
        if state:
            return _broken("node", f"the {name} container on {node} does not run: {state}", f"{where} -c {name}")
    failed = last_failed_mount(case.evidence.events, case.needs)
    if failed is not None and NOT_REGISTERED in failed:
        return _broken(
            "node",
            f"the kubelet of {node} does not know the driver {DRIVER}",
            f"{where} -c csi; is the chart's kubeletDir the kubelet's own?",
        )
    conditions = (agent.get("status") or {}).get("conditions") or ()
    if not any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions):
        return _broken("node", f"the agent on {node} is not ready", f"{where} -c agent")
    return _ok("node", f"agent and driver run on {node}")


def _assignment(case: _Case) -> Link:
    node = case.cache_node
    for need in case.needs:
        if case.started or case.is_here(need):
            continue
        if node is None or need.name not in node.assigned:
            if link := _no_leader(case, "assignment"):
                return link
            return _waiting("assignment", f"the controller has not assigned {need.name} to {case.node} yet", "wait")
        if link := _superseded(case, node, need):
            return link
        if not node.heard:
            return _waiting("assignment", f"the agent on {case.node} has not taken in its assignment yet", "wait")
    return _ok("assignment", f"{_names(case)} belongs on {case.node}")


def _superseded(case: _Case, node: CacheNode, need: Need) -> Link | None:
    """Older versions are never fetched: a pod that carries one gets it only where it still is."""
    told = node.assigned[need.name]
    if not need.short or not told.digest or told.digest[7:19] == need.short:
        return None
    return _broken(
        "assignment",
        f"the pod carries version {need.short} of {need.name}, which {case.node} does not have; "
        f"the model has moved on to {short_digest(told.digest)}",
        "delete the pod: its owner makes one with the version of today",
    )


def _source(case: _Case) -> Link:
    for need in case.needs:
        facts = case.facts.get(need.name)
        if case.started or case.is_here(need) or facts is None:
            continue
        state = find_condition(facts.model.status.conditions, "Resolved")
        failed = source_failure(case.evidence.world, facts)
        if failed is not None:
            node, entry = failed
            return _broken(
                "source", f"{node} can't look at the source of {need.name}: {entry.message or entry.code}",
                "mend the source, its credentials, or spec.source of the ModelCache; the agents go on trying",
            )  # fmt: skip
        if state is not None and state.status == "False":
            return _broken("source", f"{need.name}: {state.message}", "change spec.digest, or the source")
        if not facts.digest:
            return _waiting("source", f"the source of {need.name} is being listed", "wait")
    return _ok("source", ", ".join(f"{each.name} is {case.digest(each)[7:19]}" for each in case.needs))


def _download(case: _Case) -> Link:
    for need in case.needs:
        if case.started or case.is_here(need) or case.cache_node is None:
            continue
        entry = find_entry(case.cache_node, need.name, case.digest(need))
        if entry is None or entry.phase == "pending":
            why = entry.message if entry is not None and entry.message else "it has not begun"
            return _waiting("download", f"{need.name} on {case.node}: {why}", "wait; the agent goes on by itself")
        if entry.phase == "failed":
            return _broken("download", f"{need.name} on {case.node}: {entry.message or entry.code}", _next(entry.code))
        if entry.phase != "ready":
            return _waiting("download", f"{need.name} on {case.node}: {entry.message or entry.phase}", "wait")
    return _ok("download", "every byte was fetched and verified")


def _next(code: str) -> str:
    if code == "no-room":
        return "unpin or evict something, use a larger disk, or a narrower spec.nodeSelector: cacheagent nodes"
    return "do what the sentence says; the agent tries again by itself"


def _publish(case: _Case) -> Link:
    for need in case.needs:
        if case.started or case.is_here(need) or case.cache_node is None:
            continue
        entry = find_entry(case.cache_node, need.name, case.digest(need))
        why = entry.message if entry is not None else ""
        return _broken("publish", f"{need.name} was withdrawn on {case.node}: {why}", "it is repaired by itself")
    return _ok("publish", f"{_names(case)} is there")


def _mount(case: _Case) -> Link:
    if case.started:
        return _ok("mount", "mounted read-only")
    if waits_in_init(case.pod):
        return _waiting("mount", f"{WAIT_CONTAINER} has not seen the files yet", f"kubectl logs -c {WAIT_CONTAINER}")
    failed = last_failed_mount(case.evidence.events, case.needs)
    if failed is not None:
        return _broken("mount", f"the kubelet could not mount it: {failed}", "its next try follows within two minutes")
    other = newest(case.evidence.events, "FailedMount")
    if other is not None:
        return _broken(
            "mount", f"another volume is missing: {str(other.get('message', ''))[:300]}", "not about weights"
        )
    return _waiting("mount", "the kubelet is about to mount it", "wait some seconds")


def _containers(case: _Case) -> Link:
    status = case.pod.get("status") or {}
    if status.get("phase") == "Succeeded":
        return _ok("containers", "all have ended well")
    names = [each["name"] for each in (case.pod.get("spec") or {}).get("containers") or ()]
    for name in names:
        if state := describe_container(case.pod, name):
            pod = case.parsed.meta
            return _broken(
                "containers",
                f"the weights are mounted; container {name} fails by itself: {state}",
                f"kubectl logs -n {pod.namespace} {pod.name} -c {name} --previous",
            )
    return _ok("containers", "they run")


_LINKS: Final[Mapping[str, Callable[[_Case], Link]]] = {
    "annotation": _annotation,
    "webhook": _webhook,
    "authorization": _authorization,
    "scheduling": _scheduling,
    "node": _node,
    "assignment": _assignment,
    "source": _source,
    "download": _download,
    "publish": _publish,
    "mount": _mount,
    "containers": _containers,
}


# --- what several of them need


def _no_leader(case: _Case, name: str) -> Link | None:
    """Whatever waits for the controller, waits in vain without one."""
    why = no_leader(case.evidence)
    return _broken(name, f"{why}, so nothing is assigned", _look_at_controllers(case.evidence)) if why else None


def no_leader(evidence: Evidence) -> str:
    """Why no controller leads; empty when one does, or when nobody can tell."""
    if not evidence.controllers:
        return "no controller runs"
    if evidence.lease is None:
        return ""
    spec = evidence.lease.get("spec") or {}
    renewed = seconds_of(str(spec.get("renewTime") or ""))
    silent_s = evidence.now - renewed
    if not spec.get("holderIdentity"):
        return "no controller leads"
    if silent_s > 2 * float(spec.get("leaseDurationSeconds") or 15):
        return f"no controller leads: the lease was last renewed {duration_text(silent_s)} ago"
    return ""


def _look_at_controllers(evidence: Evidence) -> str:
    namespaces = sorted({each["metadata"]["namespace"] for each in evidence.ours})
    where = f"-n {namespaces[0]} " if namespaces else "-A "
    return f"kubectl get pods {where}-l app.kubernetes.io/component=controller"


def _needs(case: _Case) -> list[Need]:
    pod = case.parsed
    volumes = (case.pod.get("spec") or {}).get("volumes") or ()
    by_ref: dict[str, tuple[str, str]] = {}
    for volume in volumes:
        csi = volume.get("csi") or {}
        if csi.get("driver") == DRIVER:
            told = csi.get("volumeAttributes") or {}
            digest = told.get("digest", "")
            by_ref[told.get("uri") or told.get("model", "")] = (volume.get("name", ""), digest[7:19])
    refs: Sequence[str] = pod.refs or tuple(by_ref)
    found = []
    for ref in refs:
        name = _model_of_uri(case, ref) if is_uri(ref) else ref
        volume, short = by_ref.get(ref, ("", ""))
        if not volume:
            short = _claimed(pod.claims, name)
        found.append(Need(written=ref, name=name, short=short, volume=volume))
    return found or [
        Need(written=name, name=name, short=short)
        for claim in claims_of(case.pod)
        for name, short in _owner(case, claim)
    ]


def _claimed(claims: Sequence[str], model: str) -> str:
    begin = claim_name(model, "sha256:" + "0" * 64)[:-12]
    return next((claim[len(begin) :] for claim in claims if claim.startswith(begin)), "")


def _owner(case: _Case, claim: str) -> list[tuple[str, str]]:
    """The model whose claim it is."""
    return [(name, short) for name in case.facts if (short := _claimed([claim], name))]


def _model_of_uri(case: _Case, uri: str) -> str:
    """The ModelCache that was made for it; which credential it is read with, only the administrator's rule says."""
    try:
        text = parse_uri(uri).text
    except UsageError:
        return ""
    named = [name for name, facts in case.facts.items() if facts.model.spec.source.uri == text]
    return next((name for name in named if name.startswith("uri-")), "")


def _names(case: _Case) -> str:
    return ", ".join(need.name or need.written for need in case.needs)


def _ok(name: str, text: str) -> Link:
    return Link(name=name, mark="ok", text=text)


def _waiting(name: str, text: str, then: str) -> Link:
    return Link(name=name, mark="waiting", text=text, next=then)


def _broken(name: str, text: str, then: str) -> Link:
    return Link(name=name, mark="broken", text=text, next=then)


__all__ = ["WAIT", "Need", "explain", "no_leader", "permits"]
