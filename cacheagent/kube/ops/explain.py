"""Why a pod has its weights or not: every link of the chain, and the first that is not there. Pure.

The order is that of the pod's life. What a link can't find out from objects it takes from the pod's events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cacheagent.kube.names import MODEL
from cacheagent.kube.ops import links_before, links_on_node
from cacheagent.kube.ops.case import Case, look_at_controllers
from cacheagent.kube.ops.evidence import Evidence
from cacheagent.kube.ops.links import CHAIN, Explanation, Link, broken, waiting
from cacheagent.kube.ops.links_before import no_annotation
from cacheagent.kube.ops.pod_facts import newest

_LINKS: Final[Mapping[str, Callable[[Case], Link]]] = {
    "annotation": links_before.annotation,
    "webhook": links_before.webhook,
    "authorization": links_before.authorization,
    "scheduling": links_before.scheduling,
    "node": links_on_node.node,
    "assignment": links_on_node.assignment,
    "source": links_on_node.source,
    "download": links_on_node.download,
    "publish": links_on_node.publish,
    "mount": links_on_node.mount,
    "containers": links_on_node.containers,
}


def explain(evidence: Evidence) -> Explanation:
    """Walk the chain; what lies behind the first link that is not there is not looked at."""
    links: list[Link] = []
    if evidence.pod is None:
        links = [_no_pod(evidence)]
        if links[0].name != "annotation":
            links.insert(0, Link(name="annotation", mark="ok", text=f"asks for {_asked(evidence.template)}"))
    else:
        case = Case(evidence, evidence.pod)
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
        return no_annotation(evidence.subject, (evidence.template.get("metadata") or {}).get("annotations") or {})  # type: ignore[attr-defined]
    failed = newest(evidence.events, "FailedCreate")
    if failed is None:
        return waiting("webhook", "there is no pod yet", "kubectl describe it: its controller says why it makes none")
    message = str(failed.get("message", ""))
    _, refused, sentence = message.partition("denied the request: ")
    if refused:
        what = "authorization" if "ModelCache" in sentence or "may not use" in sentence else "webhook"
        return broken(what, f"the webhook refuses its pods: {sentence}", "do what the sentence says")
    if "failed calling webhook" in message:
        return broken(
            "webhook",
            f"the webhook does not answer, so no pod with the annotation is made: {message[-300:]}",
            look_at_controllers(evidence),
        )
    return broken("webhook", f"no pod is made: {message[:400]}", "this is not about weights; do what it says")
