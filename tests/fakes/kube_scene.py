"""A small cluster for tests of the plan: an API server in memory, agents that answer, a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from cacheagent.kube import slim
from cacheagent.kube.api import (
    CLAIMS,
    MODEL_CACHE_NODES,
    MODEL_CACHE_PEERS,
    MODEL_CACHES,
    MODEL_WARMUPS,
    NAMESPACES,
    NODES,
    PODS,
    VOLUMES,
    KubeConflict,
    Object,
    Resource,
)
from cacheagent.kube.names import AGENT_COMPONENT, DRIVER, GATE, INJECTED_LABEL, MODEL
from cacheagent.kube.objects import ModelCacheNodeSpec, ModelCacheStatus, ModelWarmupStatus, NodeModel
from cacheagent.kube.plan import Change, Memory, Note, Plan, PlanSettings, Unused, World, plan, views
from cacheagent.kube.plan.times import written_time
from cacheagent.kube.plan.views import claims_of
from tests.fakes.kube import FakeKube
from tests.fakes.node_agents import NodeAgent, Origins

BEGIN = 1_800_000_000.0
SYSTEM = "cacheagent"
T = TypeVar("T")


class Scene:
    """Objects are made by methods; `round` plans and writes once, `settle` goes on until nothing is left to do."""

    def __init__(self, **settings: Any) -> None:
        self.now = BEGIN
        self.kube = FakeKube(now=lambda: datetime.fromtimestamp(self.now, UTC))
        self.settings = PlanSettings(**settings)
        self.memory = Memory()
        self.origins = Origins()
        self.agents: dict[str, NodeAgent] = {}
        self.notes: list[Note] = []
        self.history: list[Change] = []

    # --- who is there

    def node(self, name: str, *, agent: bool = True, taints: Sequence[Object] = (), **labels: str) -> NodeAgent:
        """A Node, with an agent on it unless told otherwise."""
        body: Object = {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}}, "spec": {}}
        if taints:
            body["spec"]["taints"] = list(taints)
        body["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
        self.kube.put(NODES, body)
        if agent:
            self.agent(name)
        return self.agents.setdefault(name, NodeAgent(name, self.origins))

    def agent(self, node: str, *, ready: bool = True) -> None:
        """The agent's pod on a node."""
        body: Object = {
            "metadata": {"name": f"agent-{node}", "namespace": SYSTEM, "labels": dict(AGENT_COMPONENT)},
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
        }
        self.kube.put(PODS, body)

    def relabel(self, node: str, **labels: str | None) -> None:
        """Somebody changes a Node's labels."""
        self.change(NODES, node, lambda item: _merge(item["metadata"]["labels"], labels))

    def model(self, name: str, uri: str = "", digest: str = "", **spec: Any) -> None:
        """A ModelCache whose source holds `digest`; every node unless told otherwise."""
        uri = uri or f"s3://models/{name}"
        if digest:
            self.origins.digests[uri] = digest
        body = {"metadata": {"name": name}, "spec": {"source": {"uri": uri}, **spec}}
        self.kube.put(MODEL_CACHES, body)

    def warmup(self, name: str, model: str, **spec: Any) -> None:
        """A ModelWarmup."""
        self.kube.put(MODEL_WARMUPS, {"metadata": {"name": name}, "spec": {"model": model, **spec}})

    def namespace(self, name: str, **labels: str) -> None:
        """A Namespace."""
        self.kube.put(NAMESPACES, {"metadata": {"name": name, "labels": labels}})

    def pod(
        self,
        name: str,
        models: str,
        *,
        namespace: str = "shop",
        node: str = "",
        phase: str = "Pending",
        gated: bool = False,
        claim: str = "",
        annotations: Mapping[str, str] = {},
        **spec: Any,
    ) -> None:
        """A pod as the webhook leaves it: with inline volumes, or with a claim."""
        refs = [ref for ref in models.split(",") if ref]
        volumes: list[Object] = [
            {"name": f"v{number}", "csi": {"driver": DRIVER, "volumeAttributes": {_attribute(ref): ref}}}
            for number, ref in enumerate(refs)
        ]
        if claim:
            volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]
        body: Object = {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {INJECTED_LABEL: "true"},
                "annotations": {MODEL: models, **annotations},
            },
            "spec": {"volumes": volumes, **spec},
            "status": {"phase": phase},
        }
        if node:
            body["spec"]["nodeName"] = node
        if gated:
            body["spec"]["schedulingGates"] = [{"name": GATE}]
        self.kube.put(PODS, body)

    def change(self, resource: Resource, name: str, edit: Callable[[Object], object], *, namespace: str = "") -> None:
        """Somebody else's hand on an object."""
        item = self.kube.peek(resource, name, namespace=namespace)
        assert item is not None
        edit(item)
        self.kube.put(resource, item)

    # --- what is there

    def status(self, model: str) -> ModelCacheStatus:
        """A ModelCache's."""
        return msgspec.convert(self._peek(MODEL_CACHES, model).get("status") or {}, ModelCacheStatus)

    def condition(self, model: str, kind: str) -> tuple[str, str, str]:
        """(status, reason, message) of a ModelCache's condition."""
        found = next(each for each in self.status(model).conditions if each.type == kind)
        return found.status, found.reason, found.message

    def warmup_status(self, name: str) -> ModelWarmupStatus:
        """A ModelWarmup's."""
        return msgspec.convert(self._peek(MODEL_WARMUPS, name).get("status") or {}, ModelWarmupStatus)

    def spec(self, node: str) -> ModelCacheNodeSpec:
        """A ModelCacheNode's."""
        return msgspec.convert(self._peek(MODEL_CACHE_NODES, node).get("spec") or {}, ModelCacheNodeSpec)

    def assigned(self, model: str) -> list[str]:
        """Nodes whose spec has the model."""
        return [
            item["metadata"]["name"]
            for item in self.kube.all(MODEL_CACHE_NODES)
            if any(each["name"] == model for each in (item.get("spec") or {}).get("models") or ())
        ]

    def entry(self, node: str, model: str) -> NodeModel:
        """What a node is told of a model."""
        return next(each for each in self.spec(node).models if each.name == model)

    def labels(self, node: str) -> dict[str, str]:
        """Our labels on a Node."""
        written: dict[str, str] = self._peek(NODES, node)["metadata"].get("labels") or {}
        return {key: value for key, value in written.items() if key.split("/")[0].endswith("cacheagent.io")}

    def taints(self, node: str) -> list[str]:
        """Keys of a Node's taints."""
        return [taint["key"] for taint in self._peek(NODES, node)["spec"].get("taints") or ()]

    def names(self, resource: Resource) -> list[str]:
        """Of all objects of a kind."""
        return [item["metadata"]["name"] for item in self.kube.all(resource)]

    def gates(self, pod: str, namespace: str = "shop") -> list[Object]:
        """A pod's scheduling gates."""
        gates: list[Object] = self._peek(PODS, pod, namespace)["spec"].get("schedulingGates") or []
        return gates

    def reasons(self) -> list[str]:
        """Of all events so far."""
        return [note.reason for note in self.notes]

    def _peek(self, resource: Resource, name: str, namespace: str = "") -> Object:
        item = self.kube.peek(resource, name, namespace=namespace)
        assert item is not None, f"there is no {resource.kind} {name}"
        return item

    # --- what happens

    def world(self) -> World:
        """As the controller's copies show it."""
        pods = [item for item in self.kube.all(PODS) if (item["metadata"].get("labels") or {}).get(INJECTED_LABEL)]
        agents = [item for item in self.kube.all(PODS) if item["metadata"]["namespace"] == SYSTEM]
        return World(
            models=self._all(MODEL_CACHES, views.parse_model),
            cache_nodes=self._all(MODEL_CACHE_NODES, views.parse_cache_node),
            warmups=self._all(MODEL_WARMUPS, views.parse_warmup),
            nodes={item["metadata"]["name"]: views.parse_node(slim.node(item)) for item in self.kube.all(NODES)},
            agents={item["metadata"]["name"]: views.parse_agent_pod(slim.agent_pod(item)) for item in agents},
            pods={item["metadata"]["uid"]: views.parse_pod(slim.pod(item)) for item in pods},
            namespaces=self._all(NAMESPACES, views.parse_meta),
            volumes=self._all(VOLUMES, views.parse_volume),
            claims={
                (item["metadata"]["namespace"], item["metadata"]["name"]): views.parse_claim(item)
                for item in self.kube.all(CLAIMS)
            },
            peers=self._all(MODEL_CACHE_PEERS, views.parse_peers),
            settings=self.settings,
            memory=self.memory,
        )

    def _all(self, resource: Resource, parse: Callable[[Object], T]) -> dict[str, T]:
        return {item["metadata"]["name"]: parse(item) for item in self.kube.all(resource)}

    def plan(self) -> Plan:
        """What the controller would do now."""
        return plan(self.world(), self.now)

    def round(self) -> Plan:
        """Plan once and write everything."""
        planned = self.plan()
        keys = [change.key for change in planned.changes]
        assert len(set(keys)) == len(keys), f"two changes of one object: {keys}"
        self.memory = planned.memory
        self.notes += planned.notices
        asyncio.run(self._write(planned.changes))
        return planned

    async def _write(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.unless_used is not None and (used := self._in_use(change.unless_used)):
                self.memory = self.memory.found_in_use(frozenset(used), self.now)
                continue
            namespace = change.namespace
            try:
                if change.verb == "create":
                    await self.kube.create(change.resource, change.body, namespace=namespace)
                elif change.verb == "patch":
                    await self.kube.patch(
                        change.resource, change.name, change.body, namespace=namespace, subresource=change.subresource
                    )
                else:
                    await self.kube.delete(change.resource, change.name, namespace=namespace, uid=change.uid)
            except KubeConflict:
                continue
            self.history.append(change)
            self.notes += change.notes

    def _in_use(self, unused: Unused) -> set[tuple[str, str, str]]:
        pods = [pod for pod in self.kube.all(PODS) if unused.node in {"", pod["spec"].get("nodeName", "")}]
        used = {(pod["metadata"]["namespace"], claim) for pod in pods for claim in claims_of(pod)}
        return {(unused.node, *claim) for claim in unused.claims & used}

    def report(self, *names: str) -> None:
        """These agents (all without names) read their objects and report."""
        for name, agent in self.agents.items():
            item = self.kube.peek(MODEL_CACHE_NODES, name)
            if item is None or (names and name not in names):
                continue
            agent.evict((item.get("spec") or {}).get("held") or [])
            self.kube.put(MODEL_CACHE_NODES, {**item, "status": agent.respond(item, written_time(self.now))})

    def bind(self) -> None:
        """What the volume controller does."""
        for volume in self.kube.all(VOLUMES):
            claim = volume["spec"]["claimRef"]
            key = claim["name"], claim["namespace"]
            found = self.kube.peek(CLAIMS, key[0], namespace=key[1])
            was = (volume.get("status") or {}).get("phase")
            phase = "Bound" if found else "Released" if was in {"Bound", "Released"} else "Available"
            self.kube.put(VOLUMES, {**volume, "status": {"phase": phase}})
            if found:
                self.kube.put(CLAIMS, {**found, "status": {"phase": "Bound"}})

    def step(self) -> Plan:
        """A round of everybody: controller, agents, volumes."""
        planned = self.round()
        self.report()
        self.bind()
        return planned

    def settle(self, limit: int = 30) -> int:
        """Until the controller has nothing left to do and nobody else either; the number of rounds."""
        for number in range(limit):
            before = self._others_work()
            if not self.step().changes and self._others_work() == before:
                return number
        raise AssertionError(f"still changing after {limit} rounds: {self.plan().changes}")

    def _others_work(self) -> list[list[Object]]:
        return [self.kube.all(resource) for resource in (MODEL_CACHE_NODES, VOLUMES, CLAIMS)]

    def later(self, seconds: float) -> None:
        """The clock goes on."""
        self.now += seconds

    def restart(self) -> None:
        """Another controller takes over: it remembers nothing."""
        self.memory = Memory()

    def without_lag(self) -> None:
        """Forget what `fresh` means: the controller has run for a while."""
        self.memory = replace(self.memory, fresh=False)


def _attribute(ref: str) -> str:
    return "uri" if "://" in ref else "model"


def _merge(target: dict[str, str], changes: Mapping[str, str | None]) -> None:
    for key, value in changes.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value
