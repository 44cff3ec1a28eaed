"""A pod and the evidence about it, with what several links need to know. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cacheagent.errors import UsageError
from cacheagent.kube.api import Object
from cacheagent.kube.names import DRIVER, claim_name
from cacheagent.kube.ops.evidence import Evidence
from cacheagent.kube.ops.links import Link, broken
from cacheagent.kube.ops.pod_facts import has_started
from cacheagent.kube.plan import World
from cacheagent.kube.plan.facts import Facts, facts_of
from cacheagent.kube.plan.times import seconds_of
from cacheagent.kube.plan.views import claims_of, parse_pod
from cacheagent.kube.uris import is_uri, parse_uri
from cacheagent.outlook import duration_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One model of the pod: `written` as in the annotation, `name` of its ModelCache (empty while nobody knows).
    `short`: 12 hex digits of the version that the pod carries, empty if it carries none."""

    written: str
    name: str
    short: str = ""
    volume: str = ""


class Case:
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


def permits(world: World, facts: Facts, namespace: str) -> bool:
    """As the controller has resolved it for the nodes, labels of namespaces included; else by names alone."""
    for node in world.cache_nodes.values():
        assigned = node.assigned.get(facts.name)
        if assigned is not None:
            return assigned.namespaces is None or namespace in assigned.namespaces
    allowed = facts.model.spec.allowed_namespaces
    return facts.permits(namespace) or (allowed is not None and allowed.selector is not None)


def without_leader(case: Case, name: str) -> Link | None:
    """Whatever waits for the controller, waits in vain without one."""
    why = no_leader(case.evidence)
    return broken(name, f"{why}, so nothing is assigned", look_at_controllers(case.evidence)) if why else None


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


def look_at_controllers(evidence: Evidence) -> str:
    """The command with which a person goes on."""
    namespaces = sorted({each["metadata"]["namespace"] for each in evidence.ours})
    where = f"-n {namespaces[0]} " if namespaces else "-A "
    return f"kubectl get pods {where}-l app.kubernetes.io/component=controller"


def _needs(case: Case) -> list[Need]:
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
        volume, short = by_ref.get(ref) or by_ref.get(_spelled(ref)) or ("", "")
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


def _owner(case: Case, claim: str) -> list[tuple[str, str]]:
    """The model whose claim it is."""
    return [(name, short) for name in case.facts if (short := _claimed([claim], name))]


def _model_of_uri(case: Case, uri: str) -> str:
    """The ModelCache that was made for it; which credential it is read with, only the administrator's rule says."""
    text = _spelled(uri)
    named = [name for name, facts in case.facts.items() if facts.model.spec.source.uri == text]
    return next((name for name in named if name.startswith("uri-")), "")


def _spelled(ref: str) -> str:
    """A URI in the one spelling that volumes and ModelCaches have; anything else as it is."""
    try:
        return parse_uri(ref).text
    except UsageError:
        return ref


def names_of(case: Case) -> str:
    """The pod's models, for people."""
    return ", ".join(need.name or need.written for need in case.needs)
