"""What is known about a pod that should have weights: the objects along its way, read once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cacheagent.kube.api import EVENTS, LEASES, PODS, KubeApi, KubeError, KubeNotFound, KubeRefused, Object, Resource
from cacheagent.kube.names import AGENT_COMPONENT
from cacheagent.kube.ops.view import read_world
from cacheagent.kube.plan import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """`subject`: what was asked about, `pod/web-0`. `pod`: None where there is none (yet); `template`: the workload's.
    `events`: of the pod, or of the workload, oldest first. `ours`: the product's own pods. `lease`: by which the
    controllers choose who leads; None when it could not be read. `now`: seconds since the epoch.
    """

    subject: str
    namespace: str
    now: float
    pod: Object | None = None
    template: Mapping[str, object] = field(default_factory=dict)
    events: Sequence[Object] = ()
    ours: Sequence[Object] = ()
    lease: Object | None = None
    world: World = field(default_factory=World)

    def agent_on(self, node: str) -> Object | None:
        """The agent's pod there; of several the one that is not going."""
        found = [
            each
            for each in self.ours
            if _component(each) == "agent" and (each.get("spec") or {}).get("nodeName") == node
        ]
        found.sort(key=lambda each: "deletionTimestamp" in each["metadata"])
        return found[0] if found else None

    @property
    def controllers(self) -> list[Object]:
        """Pods of the controller."""
        return [each for each in self.ours if _component(each) == "controller"]


async def gather(api: KubeApi, resource: Resource, name: str, namespace: str, now: float) -> Evidence:
    """Raises KubeNotFound when there is no such pod or workload."""
    subject = f"{resource.kind.lower()}/{name}"
    found = await api.get(resource, name, namespace=namespace)
    world, ours = await asyncio.gather(
        read_world(api), api.list(PODS, labels=f"app.kubernetes.io/name={AGENT_COMPONENT['app.kubernetes.io/name']}")
    )
    lease = await _lease(api, ours.items)
    pod, template, about = (found, {}, [found["metadata"]["uid"]]) if resource == PODS else await _pod_of(api, found)
    events = [
        each for each in (await api.list(EVENTS, namespace=namespace)).items
        if (each.get("involvedObject") or {}).get("uid") in about
    ]  # fmt: skip
    events.sort(key=event_time)
    return Evidence(
        subject=subject if resource == PODS or pod is None else f"{subject}: pod/{pod['metadata']['name']}",
        namespace=namespace,
        now=now,
        pod=pod,
        template=template,
        events=events,
        ours=ours.items,
        lease=lease,
        world=world,
    )


def event_time(event: Object) -> str:
    """When it was last seen; RFC 3339 sorts as text, near enough."""
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )


async def _pod_of(api: KubeApi, workload: Object) -> tuple[Object | None, Mapping[str, object], list[str]]:
    """Of a workload's pods the one that is furthest from running; its template; and whom events are about."""
    namespace, uid = workload["metadata"]["namespace"], workload["metadata"]["uid"]
    owners = [uid]
    if workload.get("kind") == "Deployment":
        from cacheagent.kube.ops.placement import REPLICA_SETS

        sets = await api.list(REPLICA_SETS, namespace=namespace)
        owners += [each["metadata"]["uid"] for each in sets.items if owners_of(each) & {uid}]
    pods = [
        each
        for each in (await api.list(PODS, namespace=namespace)).items
        if owners_of(each) & set(owners) and "deletionTimestamp" not in each["metadata"]
    ]
    pods.sort(key=lambda each: (_is_ready(each), -len(each["metadata"]["name"]), each["metadata"]["name"]))
    template = (workload.get("spec") or {}).get("template") or {}
    if not pods:
        return None, template, owners
    return pods[0], template, [*owners, pods[0]["metadata"]["uid"]]


def owners_of(item: Object) -> set[str]:
    """Uids of whoever made it."""
    return {each.get("uid", "") for each in item["metadata"].get("ownerReferences") or ()}


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


async def _lease(api: KubeApi, ours: Sequence[Object]) -> Object | None:
    """The controllers' Lease has the name of their Deployment, which stands in their pods' names."""
    for pod in ours:
        if _component(pod) != "controller":
            continue
        owner = next(iter(pod["metadata"].get("ownerReferences") or ()), None)
        if owner is None:
            continue
        try:
            return await api.get(LEASES, owner["name"].rpartition("-")[0], namespace=pod["metadata"]["namespace"])
        except (KubeNotFound, KubeRefused):
            return None
        except KubeError:
            return None
    return None


def _component(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get("app.kubernetes.io/component", ""))
