"""Pods and the webhook behind a real API server: its schema, its defaults, its own admission rules."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheagent.kube import names, slim
from cacheagent.kube.api import WEBHOOKS, KubeRefused, Object
from cacheagent.kube.plan.views import parse_pod
from cacheagent.kube.start_traces import find_review
from cacheagent.kube.webhook.certificates import CertificateSettings, take_step, utc_now
from cacheagent.kube.webhook.serving import ServingContext
from tests.fakes.kube_server import ApiServer, running_api_server
from tests.fakes.webhook import pod
from tests.fakes.webhook_scene import OPTED_IN, Scene, in_a_thread, webhooks

FIXTURES: Final = Path(__file__).parents[1] / "fixtures/stacks/kserve"

pytestmark = [pytest.mark.kube_api, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with running_api_server(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture(scope="module")
def scene(server: ApiServer) -> Iterator[Scene]:
    """One for the tests that don't touch certificates."""
    with in_a_thread() as loop:
        made = Scene(server, loop)
        context = made.up(CertificateSettings())
        made.run(context.__aenter__())
        try:
            yield made
        finally:
            made.run(context.__aexit__(None, None, None))


# --- pods as a schema lets them through

_AMOUNTS = st.sampled_from([{}, {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}},
                            {"requests": {"cpu": "10m"}}])  # fmt: skip
_MOUNTS = st.lists(
    st.builds(
        lambda path: {"name": "scratch", "mountPath": path},
        st.sampled_from(["/mnt/models", "/mnt", "/x"]),
    ),
    max_size=2,
    unique_by=lambda mount: mount["mountPath"],
)
_CONTAINER = st.fixed_dictionaries(
    {"image": st.just("i"), "resources": _AMOUNTS},
    optional={
        "volumeMounts": _MOUNTS,
        "env": st.just([{"name": "HF_HUB_CACHE", "value": "/own"}]),
        "securityContext": st.just({"runAsUser": 0}),
        "command": st.just(["a", "b"]),
    },
)  # fmt: skip
_SIDECAR = st.one_of(_CONTAINER, _CONTAINER.map(lambda container: container | {"restartPolicy": "Always"}))


def _named(containers: list[Object], given_names: list[str]) -> list[Object]:
    return [container | {"name": name} for container, name in zip(containers, given_names, strict=False)]


_SPEC = st.fixed_dictionaries(
    {
        "containers": st.builds(
            _named,
            st.lists(_CONTAINER, min_size=1, max_size=3),
            st.permutations(["main", "kserve-container", "queue-proxy"]),
        ),
        "volumes": st.just([{"name": "scratch", "emptyDir": {}}]),
    },
    optional={
        "initContainers": st.builds(
            _named, st.lists(_SIDECAR, max_size=3), st.permutations(["prepare", "istio-init", "istio-proxy"])
        ),
        "affinity": st.sampled_from([
            {"podAntiAffinity": {}},
            {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}]}},
        ]),
        "schedulingGates": st.just([{"name": "others.io/gate"}]),
        "nodeName": st.just("n1"),
        "securityContext": st.just({"fsGroup": 5, "runAsNonRoot": True}),
        "restartPolicy": st.sampled_from(["Always", "Never"]),
        "tolerations": st.just([{"operator": "Exists"}]),
    },
)  # fmt: skip
_MODELS = ["llama", "llama,qwen", "hub", "fresh", "hf://org/m", "s3://team-a/m", "secret", "l" * 63]
_ANNOTATIONS = st.fixed_dictionaries(
    {"model": st.sampled_from(_MODELS)},
    optional={
        "mount-path": st.sampled_from(["/m", "/mnt", "/x"]),
        "containers": st.sampled_from(["main", "queue-proxy", "prepare"]),
        "mode": st.sampled_from(["csi", "pv"]),
        "wait": st.sampled_from(["mount", "gate", "init"]),
        "view": st.sampled_from(["files", "hf"]),
        "page-cache": st.sampled_from(["true", "false"]),
    },
)  # fmt: skip
_SERVERS_OWN = ("uid", "creationTimestamp", "managedFields", "name", "namespace", "resourceVersion", "generation")


async def tried(scene: Scene, body: Object) -> tuple[Object, KubeRefused | None]:
    """The pod, or why not."""
    try:
        return await scene.try_pod(body), None
    except KubeRefused as refused:
        return {}, refused


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(annotations=_ANNOTATIONS, spec=_SPEC)
def test_any_pod_is_admitted_once_or_refused_with_a_sentence(scene: Scene, annotations: Any, spec: Any) -> None:
    """Never a 500. What is admitted passes the real schema, and admitting the result again changes nothing."""
    first, refused = scene.run(tried(scene, pod(annotations, **spec)))
    if refused is not None:
        assert refused.status in {400, 403, 422}, refused
        # What the API server itself finds wrong in such a pod: a gate beside the name of a node.
        told = ("cacheagent: ", "schedulingGates", "nodeName")
        assert any(part in refused.message for part in told), refused
        return
    assert first["metadata"]["labels"][names.INJECTED_LABEL] == "true"
    again = json.loads(json.dumps(first))
    for field in _SERVERS_OWN:
        again["metadata"].pop(field, None)
    again.pop("status", None)
    second = scene.run(scene.try_pod(again))
    assert second["spec"] == first["spec"]
    assert second["metadata"]["annotations"] == first["metadata"]["annotations"]


def test_most_made_up_pods_were_admitted(scene: Scene) -> None:
    """A webhook that refused everything would pass the test before; and none met a defect."""
    assert scene.results["patched"] > 20
    assert scene.results["unchanged"] > 20
    assert not scene.results["defect"]
    assert not scene.results["malformed"]


def test_a_refusal_as_a_person_reads_it(scene: Scene) -> None:
    """The webhook's name, then our sentence; a pod that doesn't ask is none of our business."""
    with pytest.raises(KubeRefused) as refused:
        scene.run(scene.try_pod(pod({"model": "lama"})))
    assert (
        'admission webhook "pods.cacheagent.io" denied the request: cacheagent: '
        "there is no ModelCache 'lama'; did you mean 'llama'?" in refused.value.message
    )
    assert refused.value.status == 403
    before = scene.results.total()
    scene.run(scene.try_pod(pod({})))
    assert scene.results.total() == before


def test_a_restricted_namespace(scene: Scene) -> None:
    """PodSecurity admits what we add in each mode of waiting, and refuses what it must (the control)."""
    allowed = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    strict = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "main", "image": "i", "securityContext": allowed}],
    }
    for wait in ("mount", "init", "gate"):
        made = scene.run(scene.try_pod(pod({"model": "llama", "wait": wait}, **strict), "strict"))
        assert made["spec"]["volumes"][0]["csi"]["driver"] == names.DRIVER
    made = scene.run(scene.try_pod(pod({"model": "secret", "mode": "csi"}, **strict), "team-b"))
    assert made["metadata"]["labels"][names.INJECTED_LABEL] == "true"
    with pytest.raises(KubeRefused, match="violates PodSecurity"):
        scene.run(scene.try_pod(pod({"model": "llama", "wait": "init"}), "strict"))


@pytest.mark.parametrize(
    ("resources", "quality"),
    [
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
    ],
)
def test_a_quality_of_service_stays(scene: Scene, resources: Any, quality: str) -> None:
    """As the API server computes it, with and without our container."""
    containers = [{"name": "main", "image": "i", "resources": resources}]
    for asked in ({}, {"model": "llama"}, {"model": "llama", "wait": "init"}):
        made = scene.run(scene.try_pod(pod(asked, containers=containers)))
        assert made["status"]["qosClass"] == quality


def test_fields_that_we_do_not_know_survive(scene: Scene) -> None:
    """What a pod has beside our own additions is what it has without us."""
    spec = {
        "hostUsers": False, "os": {"name": "linux"}, "overhead": None, "topologySpreadConstraints": [],
        "containers": [{"name": "main", "image": "i", "resizePolicy": [
            {"resourceName": "cpu", "restartPolicy": "NotRequired"}], "stdin": True}],
    }  # fmt: skip
    plain = scene.run(scene.try_pod(pod({}, **spec)))["spec"]
    ours = scene.run(scene.try_pod(pod({"model": "llama"}, **spec)))["spec"]
    del ours["affinity"], ours["volumes"], ours["containers"][0]["volumeMounts"]
    assert ours == plain


def test_when_a_pod_was_judged_is_written_on_it(scene: Scene) -> None:
    """For a pod that has no UID yet: what was written is found again on the pod that has one."""
    stored = parse_pod(slim.pod(scene.run(scene.try_pod(pod({"model": "llama"})))))
    judged = find_review(stored)
    assert stored.meta.uid
    assert judged is not None
    assert abs(judged.began_at - stored.meta.created_at) < 2  # whole seconds


def test_a_sidecar_that_is_injected_after_us(scene: Scene) -> None:
    """Another webhook runs later and adds a container; ours is called again and gives it nothing."""
    scene.run(_with_a_late_sidecar(scene))


async def _with_a_late_sidecar(scene: Scene) -> None:
    def add_a_sidecar(body: Object) -> list[Object]:
        assert "uid" not in body["metadata"]  # a start's trace is named by it: only later
        there = any(container["name"] == "late" for container in body["spec"]["containers"])
        operation = {"op": "add", "path": "/spec/containers/0", "value": {"name": "late", "image": "i"}}
        return [] if there else [operation]

    async with another_webhook(scene, "zz-late", add_a_sidecar):
        async with asyncio.timeout(60):
            while True:
                calls = scene.results.total()
                made = await scene.try_pod(pod({"model": "llama"}))
                if len(made["spec"]["containers"]) == 2:
                    break
                await asyncio.sleep(0.05)
    assert scene.results.total() == calls + 2
    assert [container["name"] for container in made["spec"]["containers"]] == ["late", "main"]
    assert [bool(container.get("volumeMounts")) for container in made["spec"]["containers"]] == [False, True]


@asynccontextmanager
async def another_webhook(scene: Scene, name: str, patch_for: Callable[[Object], list[Object]]) -> AsyncIterator[None]:
    """Somebody else's, for every pod, for the length of the block. Its configuration's name says when it is called."""

    async def answer(request: web.Request) -> web.Response:
        review = await request.json()
        patch = base64.b64encode(json.dumps(patch_for(review["request"]["object"])).encode()).decode()
        response = {"uid": review["request"]["uid"], "allowed": True, "patchType": "JSONPatch", "patch": patch}
        return web.json_response({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response})

    identity = scene.server.folder / f"{name}.pem"
    stored = make_identity()
    identity.write_bytes(stored[0] + b"\n" + stored[1])
    serving = ServingContext()
    serving.context.load_cert_chain(identity)
    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=serving.context).start()
    hook = {
        "name": f"{name}.example.com",
        "clientConfig": {
            "url": f"https://localhost:{runner.addresses[0][1]}/",
            "caBundle": base64.b64encode(stored[2]).decode(),
        },
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "admissionReviewVersions": ["v1"],
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "None",
    }
    await scene.client.apply(WEBHOOKS, webhooks(name, hook), manager="tests")
    try:
        yield
    finally:
        await scene.client.delete(WEBHOOKS, name)
        await runner.cleanup()


# --- KServe's pods, in a namespace that opted in


def of_kserve(name: str) -> Object:
    """A pod as KServe makes it."""
    made: Object = yaml.safe_load((FIXTURES / f"{name}.yaml").read_text())
    return made


def mounted(made: Object) -> dict[str, str]:
    """Path and volume in the container that serves."""
    (container,) = made["spec"]["containers"]
    return {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize(("name", "volume"), [("sklearn-s3", "cacheagent-llama"), ("huggingface-hf", "cacheagent-hub")])
def test_a_pod_of_kserves_is_served_where_its_namespace_wants_it(scene: Scene, name: str, volume: str) -> None:
    """The cache where KServe's download would be, and nothing in other namespaces."""
    made = scene.run(scene.try_pod(of_kserve(name), OPTED_IN))
    assert mounted(made)["/mnt/models"] == volume
    (initializer,) = made["spec"]["initContainers"]
    assert (initializer["name"], initializer["command"]) == ("storage-initializer", ["/bin/true"])
    before = scene.results.total()
    elsewhere = scene.run(scene.try_pod(of_kserve(name), "team-a"))
    assert scene.results.total() == before
    assert mounted(elsewhere)["/mnt/models"] == "kserve-provision-location"
    assert "command" not in elsewhere["spec"]["initContainers"][0]


def test_a_pod_of_kserves_that_can_not_be_served_is_made_all_the_same(scene: Scene) -> None:
    """An unknown URI without a trace of us; a forbidden one with the reason on it."""
    unknown = scene.run(scene.try_pod(of_kserve("sklearn-unknown"), OPTED_IN))
    assert unknown["spec"] == scene.run(scene.try_pod(of_kserve("sklearn-unknown")))["spec"]
    assert not any(key.startswith(names.GROUP) for key in unknown["metadata"].get("annotations", {}))
    body = of_kserve("sklearn-s3")
    body["spec"]["initContainers"][0]["args"][0] = "s3://models/secret"
    forbidden = scene.run(scene.try_pod(body, OPTED_IN))
    assert f"namespace '{OPTED_IN}' may not use" in forbidden["metadata"]["annotations"][names.NOT_SERVED]
    assert mounted(forbidden)["/mnt/models"] == "kserve-provision-location"


@pytest.mark.parametrize("configuration", ["a-kserve", "zz-kserve"])
def test_kserves_webhook_before_and_after_ours(scene: Scene, configuration: str) -> None:
    """By the names of the configurations one or the other is called first; the pod is the same."""
    made = scene.run(_beside_kserves_webhook(scene, configuration))
    assert mounted(made)["/mnt/models"] == "cacheagent-llama"
    assert [each["name"] for each in made["spec"]["initContainers"]] == ["storage-initializer"]
    assert made["spec"]["initContainers"][0]["command"] == ["/bin/true"]


async def _beside_kserves_webhook(scene: Scene, configuration: str) -> Object:
    """KServe's own does what its fixture shows, once; it looks for the init container by its name, as KServe does."""
    whole, bare = of_kserve("sklearn-s3"), of_kserve("sklearn-template")

    def add_a_download(body: Object) -> list[Object]:
        if "initContainers" in body["spec"] or "serving.kserve.io/inferenceservice" not in body["metadata"].get(
            "labels", {}
        ):
            return []
        wanted = {
            "/spec/initContainers": whole["spec"]["initContainers"],
            "/spec/volumes": whole["spec"]["volumes"],
            "/spec/containers/0/volumeMounts": whole["spec"]["containers"][0]["volumeMounts"],
        }
        return [{"op": "add", "path": path, "value": value} for path, value in wanted.items()]

    async with another_webhook(scene, configuration, add_a_download), asyncio.timeout(60):
        while True:
            made = await scene.try_pod(bare, OPTED_IN)
            if "initContainers" in made["spec"]:
                return made
            await asyncio.sleep(0.05)


def make_identity() -> tuple[bytes, bytes, bytes]:
    """Key, certificate and authority of somebody else's webhook on localhost."""
    stored = take_step("create", None, ("localhost",), utc_now(), CertificateSettings())
    return stored.serving.key, stored.serving.certificate, stored.bundle_pem
