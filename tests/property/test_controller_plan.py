"""Whatever happens to a cluster, in whatever order: the controller's plan keeps its promises and comes to rest."""

from __future__ import annotations

import base64

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cacheagent.kube.api import MODEL_CACHE_NODES, MODEL_CACHE_PEERS, MODEL_CACHES, NAMESPACES, NODES, PODS
from cacheagent.kube.names import LOOK, REFRESH, VERSION_LABEL, claim_name, short_digest, version_label
from cacheagent.kube.objects import Wanted
from cacheagent.kube.plan.facts import living_cache_nodes
from cacheagent.quantity import rate_text
from tests.fakes.kube_scene import SYSTEM, Scene
from tests.fakes.node_agents import digest_of

NODE_NAMES = ["n0", "n1", "n2"]
MODEL_NAMES = ["alpha", "beta"]
RATE = 7_000_000
SPACES = ["shop", "lab"]
DIGESTS = [digest_of(name) for name in ("a1", "a2", "b1")]
ERRORS = ["", "", "", "origin-unavailable", "not-found", "no-room"]

nodes, models, spaces = st.sampled_from(NODE_NAMES), st.sampled_from(MODEL_NAMES), st.sampled_from(SPACES)
digests = st.sampled_from(DIGESTS)


class Clusters(RuleBasedStateMachine):
    """Three nodes, two models that may hold the same version, two namespaces."""

    @initialize()
    def begin(self) -> None:
        self.scene = Scene(cold=True)
        for name in SPACES:
            self.scene.namespace(name, team=name)
        self._node("n0", "gpu")

    def _node(self, name: str, pool: str) -> None:
        agent = self.scene.node(name, pool=pool)
        agent.public_key = base64.b64encode(name.encode().ljust(32)).decode()
        agent.peer_address = f"{name}.example:7411"

    # --- people

    @rule(
        name=models,
        digest=digests,
        pool=st.sampled_from(["", "gpu"]),
        prefetch=st.booleans(),
        required=st.booleans(),
        volumes=st.lists(spaces, unique=True),
        allowed=st.sampled_from([None, {"names": ["shop"]}, {"selector": {"matchLabels": {"team": "lab"}}}, {}]),
        pin=st.sampled_from(["", *DIGESTS]),
        peers=st.sampled_from(["auto", "never"]),
    )
    def write_model(self, name: str, digest: str, pool: str, pin: str, **spec: object) -> None:
        """Somebody makes or changes a ModelCache."""
        allowed, volumes = spec.pop("allowed"), spec.pop("volumes")
        body = self.scene.kube.peek(MODEL_CACHES, name) or {"metadata": {"name": name}}
        body["spec"] = {
            "source": {"uri": f"s3://models/{name}"},
            "localPersistentVolumes": {"namespaces": volumes},
            "digest": pin,
            **({"nodeSelector": {"pool": pool}} if pool else {}),
            **({"allowedNamespaces": allowed} if allowed is not None else {}),
            **spec,
        }
        self.scene.kube.put(MODEL_CACHES, body)
        self.scene.origins.digests[f"s3://models/{name}"] = digest

    @rule(name=models)
    def delete_model(self, name: str) -> None:
        """Somebody deletes one."""
        self.scene.kube.remove(MODEL_CACHES, name)

    @rule(name=models, mark=st.integers(0, 3))
    def refresh(self, name: str, mark: int) -> None:
        """Somebody has the source looked at again."""
        if self.scene.kube.peek(MODEL_CACHES, name):
            self.scene.change(
                MODEL_CACHES, name, lambda item: item["metadata"].update(annotations={REFRESH: str(mark)})
            )

    @rule(
        name=models,
        some=st.lists(nodes, unique=True, min_size=1),
        ttl=st.sampled_from([60, 100_000]),
        rate=st.sampled_from(["", rate_text(RATE)]),
    )
    def warm(self, name: str, some: list[str], ttl: int, rate: str) -> None:
        """Somebody warms nodes up."""
        self.scene.warmup(f"warm-{name}", name, nodes=some, ttlSeconds=ttl, maxOriginRate=rate)

    @rule(name=models, mark=st.integers(0, 3))
    def look(self, name: str, mark: int) -> None:
        """Somebody wants to know what the origin holds."""
        if self.scene.kube.peek(MODEL_CACHES, name):
            self.scene.change(MODEL_CACHES, name, lambda item: item["metadata"].update(annotations={LOOK: str(mark)}))

    # --- nodes and origins

    @rule(name=nodes, pool=st.sampled_from(["gpu", "cpu"]))
    def node_comes(self, name: str, pool: str) -> None:
        """A node comes, or is labelled."""
        if self.scene.kube.peek(NODES, name):
            self.scene.relabel(name, pool=pool)
        else:
            self._node(name, pool)

    @rule(name=nodes, reachable=st.booleans())
    def peer_turns(self, name: str, reachable: bool) -> None:  # noqa: FBT001 - hypothesis names it
        """An agent moves to another address, or exchanges nothing any more."""
        if name in self.scene.agents:
            self.scene.agents[name].peer_address = f"{name}.elsewhere:7411" if reachable else ""
            self.scene.report(name)

    @rule(name=nodes, wiped=st.booleans())
    def node_goes(self, name: str, wiped: bool) -> None:  # noqa: FBT001 - hypothesis names it
        """A node goes, its disk with it or not, and its pods."""
        for pod in self.scene.kube.all(PODS):
            if pod["spec"].get("nodeName") == name:
                self.scene.kube.remove(PODS, pod["metadata"]["name"], namespace=pod["metadata"]["namespace"])
        self.scene.kube.remove(NODES, name)
        if name in self.scene.agents:
            agent = self.scene.agents[name]
            agent.mounted, agent.wanted, agent.evicting = {}, [], []
            if wiped:
                agent.wipe(f"{agent.incarnation}+")

    @rule(name=nodes, ready=st.booleans())
    def agent_turns(self, name: str, ready: bool) -> None:  # noqa: FBT001 - hypothesis names it
        """An agent becomes ready, or ceases to be."""
        if self.scene.kube.peek(PODS, f"agent-{name}", namespace=SYSTEM):
            self.scene.agent(name, ready=ready)

    @rule(name=models, error=st.sampled_from(ERRORS), node=st.sampled_from(["", *NODE_NAMES]))
    def origin_turns(self, name: str, error: str, node: str) -> None:
        """An origin fails, everywhere or for one node, or recovers."""
        uri = f"s3://models/{name}"
        self.scene.origins.errors[(node, uri) if node else uri] = error

    @rule(node=nodes, name=models, count=st.integers(0, 2))
    def mount(self, node: str, name: str, count: int) -> None:
        """Volumes come and go, of what is assigned."""
        item = self.scene.kube.peek(MODEL_CACHE_NODES, node)
        if item and any(model["name"] == name for model in item["spec"].get("models") or ()):
            self.scene.agents[node].mounted[name] = count
            self.scene.report(node)

    @rule(node=nodes, name=models, space=spaces, wants=st.booleans())
    def want(self, node: str, name: str, space: str, wants: bool) -> None:  # noqa: FBT001 - hypothesis names it
        """A pod asks for a model on a node."""
        if node in self.scene.agents and self.scene.kube.peek(NODES, node):
            self.scene.agents[node].wanted = [Wanted(model=name, namespace=space)] if wants else []
            self.scene.report(node)

    @rule(node=nodes, digest=digests, wants=st.booleans())
    def press(self, node: str, digest: str, wants: bool) -> None:  # noqa: FBT001 - hypothesis names it
        """An agent needs room."""
        if node in self.scene.agents and not any(self.scene.agents[node].mounted.values()):
            self.scene.agents[node].evicting = [digest] if wants else []
            self.scene.report(node)

    @rule(node=nodes, name=models, digest=digests, space=spaces, phase=st.sampled_from(["", "Running", "Succeeded"]))
    def stranger(self, node: str, name: str, digest: str, space: str, phase: str) -> None:
        """A pod with a claim written by hand comes, ends, or goes."""
        if not phase:
            self.scene.kube.remove(PODS, "by-hand", namespace=space)
            return
        volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim_name(name, digest)}}]
        body = {"metadata": {"name": "by-hand", "namespace": space}, "spec": {"volumes": volumes, "nodeName": node}}
        self.scene.kube.put(PODS, {**body, "status": {"phase": phase}})

    @rule(name=spaces, there=st.booleans())
    def namespace_turns(self, name: str, there: bool) -> None:  # noqa: FBT001 - hypothesis names it
        """A namespace comes or goes."""
        if there:
            self.scene.namespace(name, team=name)
        else:
            self.scene.kube.remove(NAMESPACES, name)

    # --- time and the controller

    @rule(seconds=st.sampled_from([1, 70, 400, 4000, 100_000]))
    def time_passes(self, seconds: int) -> None:
        """So many seconds."""
        self.scene.later(seconds)

    @rule()
    def controller_restarts(self) -> None:
        """Another one leads."""
        self.scene.restart()

    @rule()
    def round(self) -> None:
        """The controller plans and writes, once; what is mounted stays assigned, what is told was pinned or
        accepted."""
        mounted, known = self._mounted(), self._known()
        self.scene.round()
        known |= self._known()
        self._check_rates()
        for item in self.scene.kube.all(MODEL_CACHE_NODES):
            for told in item["spec"].get("models") or ():
                assert (told["name"], told.get("digest", "")) in known, "told before it was pinned"
        for node, name in mounted:
            if self.scene.kube.peek(MODEL_CACHES, name):
                assert name in {model.name for model in self.scene.spec(node).models}, (node, name)

    @rule()
    def settle(self) -> None:
        """Left alone the cluster comes to rest, and then nothing is planned, by nobody; who is on a list is told of its
        versions."""
        self.scene.settle()
        for item in self.scene.kube.all(MODEL_CACHE_PEERS):
            for member in item["spec"]["members"]:
                told = {model.digest for model in self.scene.spec(member["name"]).models if model.shared}
                assert set(item["spec"]["digests"]) <= told
        assert self.scene.plan().changes == ()
        self.scene.restart()
        assert [change for change in self.scene.plan().changes if change.resource != PODS] == []

    def _check_rates(self) -> None:
        """There is one warm-up of a model at most."""
        for name in MODEL_NAMES:
            told = [
                node.assigned[name].max_origin_bytes_per_s
                for node in living_cache_nodes(self.scene.world()).values()
                if name in node.assigned
            ]
            assert sum(told) <= RATE, told

    def _known(self) -> set[tuple[str, str]]:
        known: set[tuple[str, str]] = set()
        for model in self.scene.kube.all(MODEL_CACHES):
            name, status = model["metadata"]["name"], model.get("status") or {}
            accepted = model["spec"].get("digest", "")
            known |= {(name, each) for each in ("", accepted, status.get("digest", ""))}
            known |= {(name, each) for each in status.get("previousDigests") or ()}
        return known

    def _mounted(self) -> list[tuple[str, str]]:
        found = []
        for item in self.scene.kube.all(MODEL_CACHE_NODES):
            assigned = {model["name"] for model in item["spec"].get("models") or ()}
            entries = (item.get("status") or {}).get("models") or ()
            found += [
                (item["metadata"]["name"], entry["name"])
                for entry in entries
                if entry.get("mounted") and entry["name"] in assigned
            ]
        return found

    # --- always

    @invariant()
    def labels_are_of_what_was_there(self) -> None:
        """No label names a version that no agent of that node ever reported, and each key has the one value."""
        shorts = {short_digest(digest) for digest in DIGESTS}
        for node in self.scene.kube.all(NODES):
            for key, value in (node["metadata"].get("labels") or {}).items():
                if key.startswith(VERSION_LABEL):
                    assert value == "ready"
                    assert key.removeprefix(VERSION_LABEL) in shorts


def test_the_machine_sees_what_it_looks_for() -> None:
    """Positive control: a version that is ready is labelled, so the machine's invariants have something to look at."""
    scene = Scene()
    scene.node("n0")
    scene.model("alpha", digest=DIGESTS[0])
    scene.settle()
    assert version_label(DIGESTS[0]) in scene.labels("n0")


def test_the_machine_sees_lists_of_peers() -> None:
    """Positive control: two nodes of the machine are told of each other."""
    machine = Clusters()
    machine.begin()
    machine.node_comes("n1", "gpu")
    machine.scene.model("alpha", digest=DIGESTS[0])
    machine.scene.settle()
    (item,) = machine.scene.kube.all(MODEL_CACHE_PEERS)
    assert [member["name"] for member in item["spec"]["members"]] == ["n0", "n1"]


Clusters.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestClusters = Clusters.TestCase
