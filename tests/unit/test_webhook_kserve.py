"""Pods as KServe makes them (`tests/fixtures/stacks/kserve`), without a word of ours in them, through the webhook of
namespaces that opted in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.kube import names
from cacheagent.kube.webhook.catalog import Catalog, MirrorCatalog, to_catalog_model
from cacheagent.kube.webhook.refusal import PodRefused
from cacheagent.kube.webhook.review import AdmissionRequest, takeover_for
from tests.fakes.webhook import LLAMA, SETTINGS, apply_patch, catalog, cluster, model

Pod = dict[str, Any]

FIXTURES: Final = Path(__file__).resolve().parents[1] / "fixtures/stacks/kserve"
NEWEST: Final = "1.37"
SERVED: Final = {
    "sklearn-s3": {"cacheagent-llama": "/mnt/models"},
    "huggingface-hf": {"cacheagent-hub": "/mnt/models"},
    "several": {"cacheagent-llama": "/mnt/models/base", "cacheagent-hub": "/mnt/models/adapter"},
}
"""Volumes of ours and where they are, by the fixture."""
UNTOUCHED: Final = ("sklearn-unknown", "sklearn-pvc", "sklearn-template")
FAR: Final = "minio.example:9000"


def fixture(name: str) -> Pod:
    """The pod as KServe makes it."""
    pod: Pod = yaml.safe_load((FIXTURES / f"{name}.yaml").read_text())
    return pod


def operations(pod: Pod, known: Catalog | None = None, namespace: str = "team-a") -> list[dict[str, Any]]:
    """What the webhook answers. Raises PodRefused where it leaves the pod to KServe and says why."""
    raw = {
        "uid": "u",
        "operation": "CREATE",
        "namespace": namespace,
        "kind": {"group": "", "kind": "Pod"},
        "object": pod,
    }
    return takeover_for(msgspec.convert(raw, AdmissionRequest), known or catalog(), SETTINGS)


def served(pod: Pod, known: Catalog | None = None, namespace: str = "team-a") -> Pod:
    """The pod afterwards; a second call must find nothing to do."""
    after: Pod = apply_patch(pod, operations(pod, known, namespace))
    assert operations(after, known, namespace) == []
    return after


def container(pod: Pod, name: str) -> Pod:
    """One of its containers."""
    found: Pod
    (found,) = (c for c in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]] if c["name"] == name)
    return found


def with_models(*more: Pod, without: str = "") -> MirrorCatalog:
    """The usual cluster, with further ModelCaches."""
    models, namespaces = cluster()
    models.pop(("", without), None)
    return MirrorCatalog({**models, **{("", each["metadata"]["name"]): each for each in more}}, namespaces)


def reason(pod: Pod, known: Catalog | None = None, namespace: str = "team-a") -> str:
    """Why it is left to KServe."""
    with pytest.raises(PodRefused) as refused:
        operations(pod, known, namespace)
    assert "\n" not in refused.value.message
    return refused.value.message


@pytest.mark.parametrize("name", SERVED)
def test_the_cache_is_where_kserve_would_have_put_the_model(name: str) -> None:
    """Ours in the container that reads, read-only, with KServe's empty volume gone from it."""
    after = served(fixture(name))
    mounts = {mount["name"]: mount for mount in container(after, "kserve-container")["volumeMounts"]}
    ours = {key: mount for key, mount in mounts.items() if key.startswith("cacheagent-")}
    assert {key: mount["mountPath"] for key, mount in ours.items()} == SERVED[name]
    assert all(mount["readOnly"] is True for mount in ours.values())
    written = {mount["name"] for mount in container(after, "storage-initializer")["volumeMounts"]}
    assert not written & mounts.keys()
    volumes = {volume["name"]: volume for volume in after["spec"]["volumes"]}
    for key in SERVED[name]:
        assert volumes[key]["csi"]["driver"] == names.DRIVER
        assert volumes[key]["csi"]["volumeAttributes"]["digest"] == LLAMA
    assert after["metadata"]["labels"][names.INJECTED_LABEL] == "true"


@pytest.mark.parametrize("name", SERVED)
def test_the_init_container_keeps_its_place_and_does_nothing(name: str) -> None:
    """Its name keeps KServe from adding another one; its arguments still tell what it would have downloaded."""
    before, after = fixture(name), served(fixture(name))
    was, now = container(before, "storage-initializer"), container(after, "storage-initializer")
    assert now == {**was, "command": ["/bin/true"]}
    positions = [[c["name"] for c in pod["spec"]["initContainers"]] for pod in (before, after)]
    assert positions[0] == positions[1]


@pytest.mark.parametrize("name", SERVED)
def test_nothing_else_is_touched(name: str) -> None:
    """Take away what is ours, give KServe's mount back, and it is KServe's pod."""
    before, after = fixture(name), served(fixture(name))
    provision = {mount["name"] for mount in container(before, "storage-initializer")["volumeMounts"]}
    del container(after, "storage-initializer")["command"], after["spec"]["affinity"]
    del after["metadata"]["annotations"][names.DECISION], after["metadata"]["labels"][names.INJECTED_LABEL]
    for pod in (before, after):
        pod["spec"]["volumes"] = [v for v in pod["spec"]["volumes"] if not v["name"].startswith("cacheagent-")]
        for each in pod["spec"]["containers"]:
            left = [m for m in each["volumeMounts"] if not m["name"].startswith("cacheagent-")]
            each["volumeMounts"] = [mount for mount in left if mount["name"] not in provision]
    assert after == before


@pytest.mark.parametrize("name", [*SERVED, *UNTOUCHED])
def test_the_pods_are_kubernetes_own(name: str) -> None:
    """As recorded and as admitted."""
    for pod in (fixture(name), served(fixture(name))):
        kubernetes_validate.validate(pod, NEWEST, strict=True)


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_no_modelcache_has_is_as_without_us(name: str) -> None:
    """Not an operation: an unknown URI, a claim, and a pod that KServe's own webhook has not seen yet."""
    assert operations(fixture(name)) == []


def test_a_call_before_kserves_own_webhook_is_made_good() -> None:
    """Whichever comes first: ours finds nothing, KServe's changes the pod, and then ours is called again."""
    assert operations(fixture("sklearn-template")) == []
    assert operations(fixture("sklearn-s3"))


@pytest.mark.parametrize(
    "uri", ["oci://registry.example/m", "gs://models/llama", "S3://models", "hf://org/hub@main", "", "x"]
)
def test_other_ways_of_kserve_are_untouched(uri: str) -> None:
    """With the fixture's own as a positive control."""
    pod = fixture("sklearn-s3")
    assert operations(pod)
    container(pod, "storage-initializer")["args"][0] = uri
    assert operations(pod) == []


@pytest.mark.parametrize(
    ("written", "known"),
    [("hf://org/hub", True), ("hf://org/hub:main", True), ("hf://org/hub:v2", False), ("hf://org/hub:", True),
     ("s3://models/llama/", True), ("s3://models/llam", False), ("s3://models/llama/part", False)],
)  # fmt: skip
def test_a_uri_is_compared_by_what_it_means(*, written: str, known: bool) -> None:
    """KServe writes a revision behind a colon, and none means the default branch."""
    pod = fixture("sklearn-s3")
    container(pod, "storage-initializer")["args"][0] = written
    assert bool(operations(pod)) is known


def test_arguments_that_are_no_pairs() -> None:
    """Somebody else's init container of that name."""
    pod = fixture("sklearn-s3")
    for args in (None, [], ["s3://models/llama"], ["s3://models/llama", 1], "s3://models/llama /mnt/models"):
        container(pod, "storage-initializer")["args"] = args
        assert operations(pod) == []


def test_a_namespace_that_may_not() -> None:
    """It is told so without the model's name, and KServe goes on."""
    pod = fixture("sklearn-s3")
    container(pod, "storage-initializer")["args"][0] = "s3://models/secret"
    told = reason(pod)
    assert "namespace 'team-a' may not use the ModelCache of s3://models/secret" in told
    assert "'secret'" not in told
    assert operations(pod, namespace="team-b")


def test_two_models_of_one_origin() -> None:
    """Nobody guesses, unless the namespace may use only one of them."""
    pod = fixture("sklearn-s3")
    twin = model("twin", LLAMA, source={"uri": "s3://models/llama/"})
    assert "llama and twin have s3://models/llama" in reason(pod, with_models(twin))
    twin["spec"]["allowedNamespaces"] = {"names": ["team-b"]}
    after = served(pod, with_models(twin))
    assert [m["name"] for m in container(after, "kserve-container")["volumeMounts"]][-1] == "cacheagent-llama"


def test_models_that_do_not_count() -> None:
    """One that is being deleted, and one that a pod's URI made: it goes when that pod does."""
    pod = fixture("sklearn-s3")
    gone = model("twin", LLAMA, source={"uri": "s3://models/llama"})
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    on_demand = model(
        names.model_name_of_uri("s3://models/llama", "a"),
        LLAMA,
        source={"uri": "s3://models/llama", "credentials": "a"},
    )
    assert to_catalog_model(on_demand).on_demand
    assert operations(pod, with_models(gone, on_demand)) == operations(pod)
    assert operations(pod, with_models(gone, on_demand, without="llama")) == []


def test_another_server_with_a_bucket_of_that_name() -> None:
    """What the service account's secret says is compared with the ModelCache."""
    pod = fixture("sklearn-endpoint")
    assert f"the S3 server https://{FAR}, and model 'llama' comes from Amazon's" in reason(pod)
    for endpoint, same in ((f"https://{FAR}", True), (f"http://{FAR}/", True), ("https://minio.example", False)):
        known = with_models(model("llama", LLAMA, source={"uri": "s3://models/llama", "endpoint": endpoint}))
        if same:
            assert served(pod, known)
        else:
            assert endpoint in reason(pod, known)
    env = container(pod, "storage-initializer")["env"]
    (told,) = (each for each in env if each["name"] == "AWS_ENDPOINT_URL")
    told["value"] = "https://s3.eu-central-1.amazonaws.com"
    assert served(pod)


def test_a_model_that_is_written_beside() -> None:
    """The cache is read-only, so a writable directory stays KServe's."""
    assert 'storage.kserve.io/readonly: "false"' in reason(fixture("sklearn-writable"))


def test_a_model_that_is_decrypted_after_its_download() -> None:
    """KServe's confidential models need KServe."""
    pod = fixture("sklearn-s3")
    container(pod, "storage-initializer").setdefault("env", []).append(
        {"name": "CONFIDENTIAL_ENABLED", "value": "true"}
    )
    assert "decrypts" in reason(pod)


def test_an_archive() -> None:
    """KServe unpacks what it downloads."""
    pod = fixture("sklearn-s3")
    container(pod, "storage-initializer")["args"][0] = "s3://models/llama.tar.gz"
    assert operations(pod) == []
    archive = model("archive", LLAMA, source={"uri": "s3://models/llama.tar.gz"})
    assert "KServe unpacks" in reason(pod, with_models(archive))


def test_several_of_which_one_is_unknown() -> None:
    """All from the cache or none: they share a volume."""
    pod = fixture("several")
    container(pod, "storage-initializer")["args"][2] = "hf://org/other"
    assert "no ModelCache has hf://org/other" in reason(pod)


def test_a_container_that_mounts_a_part() -> None:
    """Nobody can tell what it looks for."""
    for change in ({"subPath": "x"}, {"mountPath": "/elsewhere"}, {"subPathExpr": "$(X)"}):
        pod = fixture("sklearn-s3")
        (mount,) = (m for m in container(pod, "kserve-container")["volumeMounts"] if m["mountPath"] == "/mnt/models")
        mount.update(change)
        assert "mounts a part of KServe's volume" in reason(pod)


def test_a_volume_that_is_not_kserves_own() -> None:
    """A directory that outlives the pod is somebody's decision."""
    pod = fixture("sklearn-s3")
    for volume in pod["spec"]["volumes"]:
        if volume.pop("emptyDir", None) is not None:
            volume["hostPath"] = {"path": "/models"}
    assert "no empty volume at /mnt/models" in reason(pod)


def test_a_transformer_reads_the_model_too() -> None:
    """Every container that KServe shows the model is shown ours; a sidecar that comes later is shown nothing."""
    pod = fixture("transformer")
    pod["spec"]["containers"].append({"name": "queue-proxy", "image": "i"})
    after = served(pod)
    for name, mounted in (("kserve-container", True), ("transformer-container", True), ("queue-proxy", False)):
        found = [mount["name"] for mount in container(after, name).get("volumeMounts", [])]
        assert ("cacheagent-llama" in found) is mounted
    after["spec"]["containers"].insert(0, {"name": "late", "image": "i"})
    assert operations(after) == []


@pytest.mark.parametrize(
    ("annotations", "check"),
    [
        ({names.WAIT: "init"}, lambda pod: pod["spec"]["initContainers"][0]["name"] == names.WAIT_CONTAINER),
        ({names.WAIT: "gate"}, lambda pod: pod["spec"]["schedulingGates"] == [{"name": names.GATE}]),
        ({names.MODE: "pv"}, lambda pod: "persistentVolumeClaim" in pod["spec"]["volumes"][-1]),
        ({names.PAGE_CACHE: "true"},
         lambda pod: pod["spec"]["volumes"][-1]["csi"]["volumeAttributes"]["pageCache"] == "true"),
    ],
)  # fmt: skip
def test_annotations_that_go_with_it(annotations: dict[str, str], check: Callable[[Pod], bool]) -> None:
    """How a pod waits, and how it mounts, is its author's also here."""
    pod = fixture("sklearn-s3")
    pod["metadata"]["annotations"] |= annotations
    assert check(served(pod))


@pytest.mark.parametrize(
    ("annotations", "told"),
    [({names.MOUNT_PATH: "/x"}, "KServe decides"), ({names.CONTAINERS: "a"}, "KServe decides"),
     ({names.VIEW: "hf"}, "KServe decides"), ({f"{names.GROUP}/mod": "pv"}, "did you mean"),
     ({names.MODE: "x"}, "it can be csi or pv")],
)  # fmt: skip
def test_annotations_that_do_not(annotations: dict[str, str], told: str) -> None:
    """Told, and KServe goes on: the pod asked for nothing of ours."""
    pod = fixture("sklearn-s3")
    pod["metadata"]["annotations"] |= annotations
    assert told in reason(pod)


def test_a_pod_that_names_a_model_is_not_taken_over() -> None:
    """The annotation has a webhook of its own."""
    pod = fixture("sklearn-s3")
    pod["metadata"]["annotations"][names.MODEL] = "llama"
    assert operations(pod) == []


def test_the_example_is_served() -> None:
    """Its namespace has the label, and its ModelCache has what its InferenceService names."""
    text = (FIXTURES.parents[3] / "examples/kserve/inferenceservice.yaml").read_text()
    namespace, cached, service = yaml.safe_load_all(text)
    assert namespace["metadata"]["labels"] == {names.KSERVE_LABEL: names.KSERVE_ENABLED}
    assert service["metadata"]["namespace"] == namespace["metadata"]["name"] == "inference"
    pod = fixture("huggingface-hf")
    container(pod, "storage-initializer")["args"][0] = service["spec"]["predictor"]["model"]["storageUri"]
    after = served(pod, with_models(cached), namespace="inference")
    assert f"cacheagent-{cached['metadata']['name']}" in {volume["name"] for volume in after["spec"]["volumes"]}
    assert "may not use" in reason(pod, with_models(cached), namespace="team-a")


def test_the_example_of_a_claim_names_one_of_ours() -> None:
    """Of the model of the other example, in the namespace that may use it."""
    folder = FIXTURES.parents[3] / "examples/kserve"
    _, cached, _ = yaml.safe_load_all((folder / "inferenceservice.yaml").read_text())
    (service,) = yaml.safe_load_all((folder / "claim.yaml").read_text())
    claim = names.claim_name(cached["metadata"]["name"], "sha256:" + "0123456789abcdef" * 4)
    assert service["spec"]["predictor"]["model"]["storageUri"] == f"pvc://{claim}"
    assert service["metadata"]["namespace"] in cached["spec"]["allowedNamespaces"]["names"]


_ARGS = st.lists(
    st.sampled_from(["s3://models/llama", "hf://org/hub", "/mnt/models", "/mnt/models/a", "/mnt", "x", ""]), max_size=4
)
_MOUNTS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["v", "w", "cacheagent-llama"]),
            "mountPath": st.sampled_from(["/mnt/models", "/mnt", "/x"]),
        },
        optional={"readOnly": st.booleans(), "subPath": st.just("x")},
    ),
    max_size=2,
)
_VOLUMES = st.lists(
    st.sampled_from([{"name": "v", "emptyDir": {}}, {"name": "w", "hostPath": {"path": "/"}}]), max_size=2
)


@given(
    args=_ARGS,
    mounts=st.tuples(_MOUNTS, _MOUNTS),
    volumes=_VOLUMES,
    command=st.sampled_from([None, [], ["x"], ["/bin/true"]]),
)
def test_any_pod_is_served_once_or_left_alone(args: Any, mounts: Any, volumes: Any, command: Any) -> None:
    """Never a defect; what is served is complete after one call."""
    initializer = {"name": "storage-initializer", "image": "i", "args": args, "volumeMounts": mounts[0]}
    initializer |= {} if command is None else {"command": command}
    spec = {
        "containers": [{"name": "a", "volumeMounts": mounts[1]}],
        "initContainers": [initializer],
        "volumes": volumes,
    }
    pod = {"metadata": {}, "spec": spec}
    sent = json.dumps(pod)
    try:
        served(pod)
    except PodRefused as refused:
        sentence = refused.message
    else:
        sentence = ""
    assert "\n" not in sentence
    assert json.dumps(pod) == sent
