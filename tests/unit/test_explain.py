"""`explain`: for each broken set-up the link that is named, and the sentence that says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cacheagent.kube.api import MODEL_CACHE_NODES, MODEL_CACHES, NODES, PODS, Object
from cacheagent.kube.names import DRIVER, GATE, INJECTED_LABEL, MODEL, claim_name
from cacheagent.kube.objects import Wanted
from cacheagent.kube.ops.evidence import Evidence
from cacheagent.kube.ops.explain import explain
from cacheagent.kube.ops.links import CHAIN, Explanation
from cacheagent.kube.plan.times import written_time
from tests.fakes.kube_scene import SYSTEM, Scene
from tests.fakes.node_agents import digest_of

A1, A2 = digest_of("a1"), digest_of("a2")
URI = "s3://models/llama"
OLD = "sha256:" + "b" * 64


@dataclass
class Case:
    """A pod in a cluster of two nodes where everything is as it should be, until a test breaks something."""

    scene: Scene = field(default_factory=Scene)
    status: dict[str, Any] = field(default_factory=dict)
    events: list[Object] = field(default_factory=list)
    pod: Object = field(default_factory=dict)
    controllers: list[Object] = field(default_factory=list)
    renewed_ago_s: float = 2.0
    holder: str = "one"
    container_states: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scene = self.scene
        for name in ("n1", "n2"):
            scene.node(name)
        scene.model("llama", digest=A1)
        scene.namespace("shop")
        scene.settle()
        owner = {"kind": "ReplicaSet", "name": "cacheagent-controller-5d4f", "uid": "rs"}
        labels = {"app.kubernetes.io/name": "cacheagent", "app.kubernetes.io/component": "controller"}
        meta = {"name": "cacheagent-controller-5d4f-x", "namespace": SYSTEM, "labels": labels}
        self.controllers = [{"metadata": {**meta, "ownerReferences": [owner]}, "spec": {}, "status": {}}]
        self.pod = injected("llama", node="n1")

    def event(self, reason: str, message: str) -> None:
        self.events.append({"reason": reason, "message": message, "metadata": {}})

    def failed_mount(self, sentence: str, code: str = "FailedPrecondition") -> None:
        """As the kubelet writes it."""
        self.event(
            "FailedMount",
            f'MountVolume.SetUp failed for volume "cacheagent-llama" : rpc error: code = {code} desc = {sentence}',
        )

    def explain(self) -> Explanation:
        agents = [item for item in self.scene.kube.all(PODS) if item["metadata"]["namespace"] == SYSTEM]
        for agent in agents:
            states = self.container_states.get(agent["spec"]["nodeName"], {})
            agent["status"]["containerStatuses"] = [
                {"name": name, "state": states.get(name, {"running": {}})} for name in ("agent", "csi")
            ]
        lease = {
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": 15,
                "renewTime": written_time(self.scene.now - self.renewed_ago_s),
            }
        }
        return explain(
            Evidence(
                subject="pod/web",
                namespace="shop",
                now=self.scene.now,
                pod=self.pod,
                events=self.events,
                ours=[*agents, *self.controllers],
                lease=lease,
                world=self.scene.world(),
            )
        )


def injected(model: str, *, node: str = "", digest: str = "", **spec: Any) -> Object:
    """A pod as the webhook leaves it."""
    kind = "uri" if "://" in model else "model"
    attributes = {kind: model, **({"digest": digest} if digest else {})}
    volume = {"name": "cacheagent-llama", "csi": {"driver": DRIVER, "volumeAttributes": attributes}}
    return {
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "uid": "u",
            "labels": {INJECTED_LABEL: "true"},
            "annotations": {MODEL: model},
        },
        "spec": {
            "volumes": [volume],
            "containers": [{"name": "main"}],
            **({"nodeName": node} if node else {}),
            **spec,
        },
        "status": {"phase": "Pending", "containerStatuses": [waiting("main", "ContainerCreating")]},
    }


def waiting(name: str, why: str, message: str = "", **last: Any) -> Object:
    """A container's status."""
    state = {"waiting": {"reason": why, "message": message}}
    return {"name": name, "state": state, **({"lastState": {"terminated": last}} if last else {})}


def cold(case: Case, **entry: Any) -> None:
    """n1 does not have the model yet; its agent says this of it."""

    def edit(item: Object) -> None:
        told = {"name": "llama", "phase": "fetching", "digest": A1, "sizeBytes": 1000, **entry}
        item["status"]["models"] = [told]

    case.scene.change(MODEL_CACHE_NODES, "n1", edit)


# --- the broken set-ups


def no_annotation(case: Case) -> None:
    case.pod["metadata"].update(annotations={"cacheagent.io/mdoel": "llama"}, labels={})
    case.pod["spec"]["volumes"] = []


def webhook_not_reached(case: Case) -> None:
    case.pod["metadata"]["labels"] = {}
    case.pod["spec"]["volumes"] = []


def unknown_model(case: Case) -> None:
    case.pod = injected("lama", node="n1")


def forbidden_namespace(case: Case) -> None:
    case.scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(allowedNamespaces={"names": ["lab"]}))
    case.scene.settle()


def forbidden_uri(case: Case) -> None:
    case.pod = injected("s3://team-b/x", node="n1")
    case.scene.agents["n1"].wanted = [Wanted(model="", uri="s3://team-b/x", namespace="shop")]
    case.scene.report()
    case.scene.settle()


def gate_waiting(case: Case) -> None:
    case.pod = injected("llama", schedulingGates=[{"name": GATE}])
    case.event("WaitingForWeights", "waits for llama: ready on 0 of 1 nodes, 37% on the furthest; until 12:00")


def foreign_gate(case: Case) -> None:
    case.pod = injected("llama", schedulingGates=[{"name": "kueue.x-k8s.io/admission"}])


def gate_without_controller(case: Case) -> None:
    gate_waiting(case)
    case.renewed_ago_s = 300


def no_gpu(case: Case) -> None:
    case.pod = injected("llama")
    message = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    case.pod["status"]["conditions"] = [condition]


def no_volume_anywhere(case: Case) -> None:
    no_gpu(case)
    message = "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."
    case.pod["status"]["conditions"][0]["message"] = message


def unassigned_without_leader(case: Case) -> None:
    case.scene.model("llama", digest=A1, prefetch=False)
    case.scene.change(MODEL_CACHE_NODES, "n1", lambda item: item["spec"].pop("models"))
    cold(case, name="other")
    case.renewed_ago_s = 125


def unassigned_without_controllers(case: Case) -> None:
    unassigned_without_leader(case)
    case.controllers = []


def not_assigned_yet(case: Case) -> None:
    unassigned_without_leader(case)
    case.renewed_ago_s = 2


def wrong_credentials(case: Case) -> None:
    case.scene = Scene()
    case.scene.node("n1")
    case.scene.model("llama")
    case.scene.origins.errors[URI] = "forbidden"
    case.scene.settle()


def pinned_elsewhere(case: Case) -> None:
    case.scene = Scene()
    case.scene.node("n1")
    case.scene.model("llama", digest=A1)
    case.scene.change(MODEL_CACHES, "llama", lambda item: item["spec"].update(digest=A2))
    case.scene.settle()


def no_room(case: Case) -> None:
    cold(case, phase="failed", code="no-room", message="needs 141 GB, 96 GB can be freed")


def downloading(case: Case) -> None:
    cold(case, message="37 %, 52 of 141 GB, about 80 s left", bytesDone=370)


def queued(case: Case) -> None:
    cold(case, phase="pending", message="others go first")


def withdrawn(case: Case) -> None:
    cold(case, phase="ready", message="two pieces rotted")


def agent_not_running(case: Case) -> None:
    ended = {"waiting": {"reason": "CrashLoopBackOff"}}
    case.container_states["n1"] = {"agent": ended}


def no_agent_there(case: Case) -> None:
    case.scene.kube.remove(PODS, "agent-n1", namespace=SYSTEM)


def agent_not_ready(case: Case) -> None:
    case.scene.agent("n1", ready=False)


def csi_not_running(case: Case) -> None:
    case.container_states["n1"] = {"csi": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}


def driver_not_registered(case: Case) -> None:
    case.event(
        "FailedMount",
        'MountVolume.SetUp failed for volume "cacheagent-llama" : kubernetes.io/csi: mounter.SetUpAt failed to get '
        f"CSI client: driver name {DRIVER} not found in the list of registered CSI drivers",
    )


def node_down(case: Case) -> None:
    case.scene.change(NODES, "n1", lambda item: item["status"]["conditions"][0].update(status="Unknown"))


def superseded(case: Case) -> None:
    case.pod = injected("llama", node="n1", digest=OLD)


def mount_fails(case: Case) -> None:
    case.failed_mount("/mnt can't be mounted: Invalid argument", "Internal")


def another_volume(case: Case) -> None:
    case.event("FailedMount", 'MountVolume.SetUp failed for volume "config" : configmap "settings" not found')


def container_crashes(case: Case) -> None:
    status = waiting("main", "CrashLoopBackOff", exitCode=137, reason="OOMKilled")
    case.pod["status"] = {"phase": "Running", "containerStatuses": [status]}


def image_is_missing(case: Case) -> None:
    status = waiting("main", "ImagePullBackOff", 'Back-off pulling image "vllm:v9"')
    case.pod["status"]["containerStatuses"] = [status]


def waits_in_init(case: Case) -> None:
    case.pod["metadata"]["annotations"]["cacheagent.io/wait"] = "init"
    case.pod["status"]["initContainerStatuses"] = [{"name": "cacheagent-wait", "state": {"running": {}}}]
    downloading(case)


SETUPS: list[tuple[Callable[[Case], None], str, str, str]] = [
    (no_annotation, "annotation", "has no annotation cacheagent.io/model (it has cacheagent.io/mdoel)", "pod template"),
    (webhook_not_reached, "webhook", "the webhook did not see it when it was created", "delete the pod"),
    (unknown_model, "authorization", "there is no ModelCache 'lama'; did you mean 'llama'?", "correct the annotation"),
    (forbidden_namespace, "authorization", "namespace 'shop' may not use the model 'llama'", "spec.allowedNamespaces"),
    (forbidden_uri, "authorization", "namespace 'shop' may not use s3://team-b/x", "ask the administrator"),
    (gate_waiting, "scheduling", "held by the gate: waits for llama: ready on 0 of 1 nodes, 37%", "cluster status"),
    (foreign_gate, "scheduling", "another gate holds it: kueue.x-k8s.io/admission", "whoever put it there"),
    (gate_without_controller, "scheduling", "no controller leads: the lease was last renewed 5 min ago", "get pods"),
    (no_gpu, "scheduling", "finds no node for it: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu", "requests"),
    (no_volume_anywhere, "scheduling", "didn't match PersistentVolume's node affinity", "cacheagent warm"),
    (node_down, "node", "n1 is not ready", "kubectl describe node n1"),
    (no_agent_there, "node", "n1 is no cache node: no agent runs there", "agent.tolerations"),
    (agent_not_running, "node", "the agent container on n1 does not run: CrashLoopBackOff", "logs agent-n1 -c agent"),
    (agent_not_ready, "node", "the agent on n1 is not ready", "logs agent-n1 -c agent"),
    (csi_not_running, "node", "the csi container on n1 does not run: exit code 137 (OOMKilled)", "-c csi"),
    (driver_not_registered, "node", f"the kubelet of n1 does not know the driver {DRIVER}", "kubeletDir"),
    (
        unassigned_without_leader,
        "assignment",
        "the lease was last renewed 2 min ago, so nothing is assigned",
        "get pods",
    ),
    (unassigned_without_controllers, "assignment", "no controller runs, so nothing is assigned", "get pods"),
    (not_assigned_yet, "assignment", "the controller has not assigned llama to n1 yet", "wait"),
    (superseded, "assignment", "carries version bbbbbbbbbbbb of llama, which n1 does not have", "delete the pod"),
    (wrong_credentials, "source", "n1 can't look at the source of llama: it says forbidden", "credentials"),
    (pinned_elsewhere, "source", "spec.digest accepts only", "change spec.digest"),
    (no_room, "download", "llama on n1: needs 141 GB, 96 GB can be freed", "larger disk"),
    (downloading, "download", "llama on n1: 37 %, 52 of 141 GB, about 80 s left", "wait"),
    (queued, "download", "llama on n1: others go first", "wait"),
    (waits_in_init, "download", "37 %, 52 of 141 GB", "wait"),
    (withdrawn, "publish", "llama was withdrawn on n1: two pieces rotted", "repaired by itself"),
    (mount_fails, "mount", "the kubelet could not mount it: /mnt can't be mounted: Invalid argument", "next try"),
    (another_volume, "mount", 'another volume is missing: MountVolume.SetUp failed for volume "config"', "not about"),
    (
        container_crashes,
        "containers",
        "container main fails by itself: CrashLoopBackOff after exit code 137 (OOM",
        "logs",
    ),
    (image_is_missing, "containers", 'ImagePullBackOff: Back-off pulling image "vllm:v9"', "logs"),
]


@pytest.mark.parametrize(("broken", "link", "sentence", "then"), SETUPS, ids=lambda each: getattr(each, "__name__", ""))
def test_the_first_link_that_is_not_there(broken: Callable[[Case], None], link: str, sentence: str, then: str) -> None:
    """The sentence names the cause, and the next step is one that helps; all links before it are there."""
    case = Case()
    broken(case)
    found = case.explain()
    missing = found.first_missing
    assert missing is not None, found
    assert (missing.name, sentence in missing.text, then in missing.next) == (link, True, True), missing
    marks = [each.mark for each in found.links]
    position = CHAIN.index(link)
    assert [each.name for each in found.links] == list(CHAIN)
    assert set(marks[:position]) <= {"ok"}
    assert set(marks[position + 1 :]) <= {"unseen"}


def running(case: Case) -> None:
    case.pod["status"] = {"phase": "Running", "containerStatuses": [{"name": "main", "state": {"running": {}}}]}


def test_a_pod_that_runs_has_everything() -> None:
    """The positive control of all the above."""
    case = Case()
    running(case)
    found = case.explain()
    assert found.first_missing is None, found
    assert {link.mark for link in found.links} == {"ok"}


def test_a_pod_that_runs_does_not_care_what_broke_since() -> None:
    """Its mount stays whatever becomes of the agent, the permission or the controller."""
    case = Case()
    running(case)
    for later in (agent_not_running, no_room, forbidden_namespace):
        later(case)
    case.controllers = []
    assert case.explain().first_missing is None


def test_a_pod_with_a_claim() -> None:
    """Mode pv: the claim's name says model and version."""
    case = Case()
    case.pod["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": claim_name("llama", A1)}}]
    running(case)
    assert case.explain().first_missing is None
    case.pod["metadata"].update(labels={}, annotations={})
    (annotation, webhook, *_) = case.explain().links
    assert (annotation.text, webhook.text) == ("asks for llama", "not needed: the volume  was written by hand")


def test_everything_is_there_and_the_kubelet_is_about_to_mount() -> None:
    found = Case().explain().first_missing
    assert found is not None
    assert (found.name, found.mark) == ("mount", "waiting")


def test_what_could_not_be_read_is_not_held_against_anybody() -> None:
    """Without permission to read the lease nobody can say that no controller leads."""
    case = Case()
    not_assigned_yet(case)
    case.holder = ""
    assert "no controller leads" in str(case.explain().first_missing)


# --- workloads whose pods can't be made


def without_pods(*events: str, annotation: str = "llama") -> Explanation:
    template = {"metadata": {"annotations": {MODEL: annotation} if annotation else {}}}
    told = [{"reason": "FailedCreate", "message": message, "metadata": {}} for message in events]
    evidence = Evidence(subject="deployment/web", namespace="shop", now=0, template=template, events=told)
    return explain(evidence)


REFUSED = 'Error creating: admission webhook "pods.cacheagent.io" denied the request: '
UNREACHED = (
    'Error creating: Internal error occurred: failed calling webhook "pods.cacheagent.io": failed to call webhook'
)


@pytest.mark.parametrize(
    ("message", "link", "sentence"),
    [
        (REFUSED + "there is no ModelCache 'lama'; did you mean 'llama'?", "authorization", "did you mean 'llama'?"),
        (REFUSED + "namespace 'shop' may not use model 'x'", "authorization", "'shop' may not use model 'x'"),
        (REFUSED + "container 'main' has /mnt mounted already", "webhook", "container 'main' has /mnt mounted"),
        (UNREACHED, "webhook", "the webhook does not answer"),
        ('Error creating: pods "web" is forbidden: exceeded quota', "webhook", "no pod is made"),
    ],
)
def test_a_workload_whose_pods_are_refused(message: str, link: str, sentence: str) -> None:
    """What the webhook said stands in the events of whoever makes the pods."""
    missing = without_pods("an older one", message).first_missing
    assert missing is not None
    assert (missing.name, sentence in missing.text) == (link, True), missing


def test_a_workload_without_the_annotation_or_without_news() -> None:
    unasked, quiet = without_pods(annotation="").first_missing, without_pods().first_missing
    assert unasked is not None
    assert unasked.name == "annotation"
    assert quiet is not None
    assert (quiet.name, quiet.mark) == ("webhook", "waiting")
