"""The links before a pod has a node: annotation, webhook, authorization, scheduling. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cacheagent.kube.api import Object
from cacheagent.kube.names import GATE, GROUP, INJECTED_LABEL, MODEL
from cacheagent.kube.ops.case import Case, Need, names_of, permits, without_leader
from cacheagent.kube.ops.links import Link, broken, ok, waiting
from cacheagent.kube.ops.pod_facts import newest
from cacheagent.kube.uris import is_uri
from cacheagent.kube.webhook.annotations import near


def annotation(case: Case) -> Link:
    if case.needs:
        return ok("annotation", f"asks for {', '.join(need.written for need in case.needs)}")
    return no_annotation(case.evidence.subject, case.parsed.meta.annotations)


def no_annotation(subject: str, annotations: Mapping[str, str]) -> Link:
    others = sorted(key for key in annotations if key.startswith(f"{GROUP}/"))
    has = f" (it has {', '.join(others[:3])})" if others else ""
    return broken(
        "annotation",
        f"{subject} has no annotation {MODEL}{has} and no volume of the cache",
        f"write {MODEL}: NAME into the pod template, not into the workload's own metadata; new pods get the weights",
    )


def webhook(case: Case) -> Link:
    volumes = ", ".join(need.volume for need in case.needs if need.volume)
    if case.parsed.meta.labels.get(INJECTED_LABEL) == "true":
        return ok("webhook", f"rewrote it: {volumes or 'a claim'}")
    if case.parsed.inline or case.parsed.claims:
        return ok("webhook", f"not needed: the volume {volumes} was written by hand")
    return broken(
        "webhook",
        "the pod names a model and has no volume of it: the webhook did not see it when it was created",
        "it sees new pods only, and none in excluded namespaces: look at `kubectl get mutatingwebhookconfigurations`, "
        "then delete the pod, so that its owner makes it anew",
    )


def authorization(case: Case) -> Link:
    namespace = case.evidence.namespace
    for need in case.needs:
        if case.started:
            continue  # permission is a pod's first mount
        if refusal := _refusal(case, need):
            return broken("authorization", refusal, "ask the administrator, or name another model")
        facts = case.facts.get(need.name)
        if facts is None and is_uri(need.written):
            if case.node and (link := without_leader(case, "authorization")):
                return link
            if case.node:
                return waiting("authorization", f"the controller has not yet judged {need.written}", "wait a moment")
            continue  # judged on its node
        if facts is None:
            meant = near(need.written, case.facts)
            return broken(
                "authorization",
                f"there is no ModelCache {need.written!r}{meant}",
                "create it, or correct the annotation in the pod template",
            )
        if not permits(case.evidence.world, facts, namespace):
            return broken(
                "authorization",
                f"namespace {namespace!r} may not use the model {need.name!r}",
                "have the namespace added to spec.allowedNamespaces of the ModelCache",
            )
    return ok("authorization", f"namespace {namespace} may use {names_of(case)}")


def _refusal(case: Case, need: Need) -> str:
    refusals = case.cache_node.spec.refusals if case.cache_node is not None else ()
    for each in refusals:
        if each.namespace == case.evidence.namespace and each.model in {need.written, need.name}:
            return each.message
    return ""


def scheduling(case: Case) -> Link:
    if case.node:
        return ok("scheduling", f"on {case.node}")
    gates = case.parsed.gates
    if GATE in gates:
        if link := without_leader(case, "scheduling"):
            return link
        told = newest(case.evidence.events, "WaitingForWeights")
        text = str(told["message"]) if told is not None else f"waits for {names_of(case)}"
        return waiting(
            "scheduling",
            f"it is held by the gate: {text}",
            f"`cacheagent cluster status {case.needs[0].name}` says what the nodes wait for",
        )
    if gates:
        return waiting("scheduling", f"another gate holds it: {', '.join(gates)}", "whoever put it there takes it off")
    conditions = (case.pod.get("status") or {}).get("conditions") or ()
    scheduled: Object = next((each for each in conditions if each.get("type") == "PodScheduled"), {})
    if scheduled.get("reason") == "Unschedulable":
        message = str(scheduled.get("message", ""))
        return broken("scheduling", f"the scheduler finds no node for it: {message}", _next_unschedulable(message))
    return waiting("scheduling", "the scheduler has not looked at it yet", "does kube-scheduler run?")


def _next_unschedulable(message: str) -> str:
    if "PersistentVolume" in message or "volume node affinity" in message:
        return "no node that it fits has this version: warm one (cacheagent warm), or use cacheagent.io/mode: csi"
    if f"{GROUP}/cold" in message:
        return "nodes are cold until their required models are there: cacheagent nodes"
    return "this is not about weights: its requests, node selector, affinity and tolerations decide"
