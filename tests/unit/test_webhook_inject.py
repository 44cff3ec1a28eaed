"""From a pod to its patch: what is added, what is refused, and that a second pass adds nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cacheagent.kube import names
from cacheagent.kube.webhook.decide import decide, volume_name
from cacheagent.kube.webhook.inject import inject
from cacheagent.kube.webhook.refusal import PodRefused
from tests.fakes.webhook import LLAMA, OLD_LLAMA, QWEN, SETTINGS, apply_patch, catalog, cluster, pod


def operations(written: dict[str, Any], namespace: str = "team-a") -> list[dict[str, Any]]:
    """The patch for a pod; none when it asks for nothing."""
    injection = decide(written, namespace, catalog(), SETTINGS)
    return [] if injection is None else inject(written, injection, SETTINGS)


def injected(written: dict[str, Any], namespace: str = "team-a") -> dict[str, Any]:
    """The pod after its patch; a second pass must find nothing to do."""
    after: dict[str, Any] = apply_patch(written, operations(written, namespace))
    assert operations(after, namespace) == []
    return after


def refusal(written: dict[str, Any], namespace: str = "team-a") -> PodRefused:
    """Why it is refused."""
    with pytest.raises(PodRefused) as refused:
        operations(written, namespace)
    return refused.value


def mounts(after: dict[str, Any], name: str = "main", field: str = "containers") -> list[tuple[str, str]]:
    """(volume, path) of one container; all of ours are read-only."""
    (container,) = (c for c in after["spec"][field] if c["name"] == name)
    found = container.get("volumeMounts", [])
    assert all(mount["readOnly"] is True for mount in found if mount["name"].startswith("cacheagent-"))
    return [(mount["name"], mount["mountPath"]) for mount in found]


def test_the_smallest_pod() -> None:
    """One annotation: volume, mount, preference, mark and decision, and not an operation more."""
    assert operations(pod({"model": "llama"})) == [
        {
            "op": "add",
            "path": "/spec/volumes",
            "value": [
                {
                    "name": "cacheagent-llama",
                    "csi": {
                        "driver": "csi.cacheagent.io",
                        "readOnly": True,
                        "volumeAttributes": {"model": "llama", "digest": LLAMA, "view": "files", "wait": "mount"},
                    },
                }
            ],
        },
        {
            "op": "add",
            "path": "/spec/containers/0/volumeMounts",
            "value": [{"name": "cacheagent-llama", "mountPath": "/mnt/models", "readOnly": True}],
        },
        {
            "op": "add",
            "path": "/spec/affinity",
            "value": {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 100,
                            "preference": {
                                "matchExpressions": [
                                    {"key": "model.cacheagent.io/llama", "operator": "In", "values": ["a" * 12]}
                                ]
                            },
                        }
                    ]
                }
            },
        },
        {"op": "add", "path": "/metadata/labels", "value": {"cacheagent.io/injected": "true"}},
        {
            "op": "add",
            "path": "/metadata/annotations/cacheagent.io~1decision",
            "value": '{"containers":["main"],"mode":"csi","models":{"llama":"'
            + LLAMA
            + '"},"view":"files","wait":"mount"}',
        },
    ]  # fmt: skip
    injected(pod({"model": "llama"}))


def test_a_pod_that_asks_for_nothing_is_left_alone() -> None:
    """No annotation, no operation."""
    assert operations(pod({})) == []
    assert operations({"metadata": {}, "spec": {}}) == []


def test_several_models_in_several_containers() -> None:
    """Each model in each container and plain init container, and what was there stays where it was."""
    before = pod(
        {"model": "llama,qwen", "page-cache": "true"},
        containers=[{"name": "a", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}, {"name": "b"}],
        initContainers=[{"name": "prepare"}, {"name": "mesh", "restartPolicy": "Always"}],
        volumes=[{"name": "x", "emptyDir": {}}],
        affinity={
            "podAffinity": {"y": 1},
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"z": 1}},
        },
    )
    after = injected(before)
    ours = [("cacheagent-llama", "/mnt/models/llama"), ("cacheagent-qwen", "/mnt/models/qwen")]
    assert mounts(after, "a") == [("x", "/x"), *ours]
    assert mounts(after, "b") == ours
    assert mounts(after, "prepare", "initContainers") == ours
    assert mounts(after, "mesh", "initContainers") == []
    assert [v["name"] for v in after["spec"]["volumes"]] == ["x", "cacheagent-llama", "cacheagent-qwen"]
    assert all(v["csi"]["volumeAttributes"]["pageCache"] == "true" for v in after["spec"]["volumes"][1:])
    assert after["spec"]["affinity"]["podAffinity"] == {"y": 1}
    assert after["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == {"z": 1}
    assert len(after["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]) == 2


def test_known_sidecars_get_nothing_unless_they_are_named() -> None:
    """KServe's own container is served, its companions are not."""
    containers = [{"name": "kserve-container"}, {"name": "queue-proxy"}, {"name": "istio-proxy"}]
    inits = [{"name": "istio-init"}, {"name": "storage-initializer"}]
    after = injected(pod({"model": "llama"}, containers=containers, initContainers=inits))
    assert mounts(after, "kserve-container") == [("cacheagent-llama", "/mnt/models")]
    assert [c["name"] for c in after["spec"]["containers"] if "volumeMounts" in c] == ["kserve-container"]
    assert all("volumeMounts" not in c for c in after["spec"]["initContainers"])
    named = injected(
        pod({"model": "llama", "containers": "istio-proxy,istio-init"}, containers=containers, initContainers=inits)
    )
    assert (
        mounts(named, "istio-proxy")
        == mounts(named, "istio-init", "initContainers")
        == [("cacheagent-llama", "/mnt/models")]
    )
    assert mounts(named, "kserve-container") == []


def test_a_late_sidecar_gets_nothing() -> None:
    """The second call, after other webhooks, follows the first decision: containers and version."""
    first = injected(pod({"model": "llama"}))
    first["spec"]["containers"].insert(0, {"name": "surprise"})
    first["spec"]["initContainers"] = [{"name": "another"}]
    assert operations(first) == []


def test_the_first_decision_keeps_its_version() -> None:
    """A model that got a new version between the two calls: the pod keeps the one it has."""
    first = injected(pod({"model": "llama"}))
    text = json.dumps(first).replace("a" * 64, "b" * 64).replace("a" * 12, "b" * 12)
    assert operations(json.loads(text)) == []
    assert OLD_LLAMA in text


def test_what_another_webhook_took_away_is_put_back() -> None:
    """A mount that was lost comes back to the containers of the first decision, and to those alone."""
    first = injected(pod({"model": "llama"}, containers=[{"name": "main"}, {"name": "side"}]))
    for container in first["spec"]["containers"]:
        del container["volumeMounts"]
    first["spec"]["containers"].append({"name": "late"})
    after = injected(first)
    assert [bool(c.get("volumeMounts")) for c in after["spec"]["containers"]] == [True, True, False]


@pytest.mark.parametrize(
    "decision",
    [
        "no json", "{}", "[]", '{"models":{},"containers":["side"],"mode":"csi","wait":"mount","view":"files"}',
        '{"models":{"secret":""},"containers":["side"],"mode":"csi","wait":"mount","view":"files"}',
        '{"models":{"llama":""},"containers":["side"],"mode":"pv","wait":"mount","view":"files"}',
        '{"models":{"llama":""},"containers":["side"],"mode":"csi","wait":"never","view":"files"}',
    ],
)  # fmt: skip
def test_a_decision_that_answers_another_request_decides_nothing(decision: str) -> None:
    """What a person wrote, or copied along with a pod whose annotations then changed."""
    after = injected(pod({"model": "llama", "decision": decision}, containers=[{"name": "main"}, {"name": "side"}]))
    assert mounts(after, "main") == mounts(after, "side") == [("cacheagent-llama", "/mnt/models")]
    assert after["spec"]["volumes"][0]["csi"]["volumeAttributes"]["digest"] == LLAMA


def test_a_decision_is_never_a_permission() -> None:
    """Neither for a model, nor for a version that is not the model's own."""
    decision = {"containers": ["main"], "mode": "csi", "wait": "mount", "view": "files"}
    forged = pod({"model": "secret", "decision": json.dumps({**decision, "models": {"secret": QWEN}})})
    assert "may not use" in refusal(forged).message
    forged = pod({"model": "llama", "decision": json.dumps({**decision, "models": {"llama": QWEN}})})
    assert injected(forged)["spec"]["volumes"][0]["csi"]["volumeAttributes"]["digest"] == LLAMA
    honest = pod({"model": "llama", "decision": json.dumps({**decision, "models": {"llama": OLD_LLAMA}})})
    assert injected(honest)["spec"]["volumes"][0]["csi"]["volumeAttributes"]["digest"] == OLD_LLAMA


def test_a_version_that_is_not_known_yet() -> None:
    """The volume names the model only, and no node can be preferred."""
    after = injected(pod({"model": "fresh"}))
    assert "digest" not in after["spec"]["volumes"][0]["csi"]["volumeAttributes"]
    assert "affinity" not in after["spec"]


def test_mode_pv_is_a_claim() -> None:
    """Of this very version, read-only, without a preference of ours: the volume's own affinity says where."""
    after = injected(pod({"model": "llama", "mode": "pv"}))
    claim = names.claim_name("llama", LLAMA)
    assert after["spec"]["volumes"] == [
        {"name": "cacheagent-llama", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    ]
    assert mounts(after) == [("cacheagent-llama", "/mnt/models")]
    assert "affinity" not in after["spec"]


def test_mode_pv_needs_a_volume() -> None:
    """A namespace that is on the list, and a version that is known."""
    assert "spec.localPersistentVolumes.namespaces" in refusal(pod({"model": "llama", "mode": "pv"}), "team-b").message
    assert "is not resolved yet" in refusal(pod({"model": "fresh", "mode": "pv"})).message


@pytest.mark.parametrize("name", ["qwen", "hub", "hf://org/name@main"])
def test_view_hf_sets_what_is_not_set(name: str) -> None:
    """Two variables where the container has none of its own."""
    own = [{"name": "HF_HUB_OFFLINE", "value": "0"}, {"name": "X", "value": "1"}]
    after = injected(
        pod(
            {"model": name, "view": "hf", "mount-path": "/hub"},
            containers=[{"name": "main"}, {"name": "b", "env": own}],
        )
    )
    first, second = after["spec"]["containers"]
    assert first["env"] == [{"name": "HF_HUB_CACHE", "value": "/hub"}, {"name": "HF_HUB_OFFLINE", "value": "1"}]
    assert second["env"] == [*own, {"name": "HF_HUB_CACHE", "value": "/hub"}]
    assert after["spec"]["volumes"][0]["csi"]["volumeAttributes"]["view"] == "hf"


def test_view_hf_needs_a_repository() -> None:
    """Which is the source's own, or named in the ModelCache."""
    assert "spec.source.repoId" in refusal(pod({"model": "llama", "view": "hf"})).message


def test_wait_gate_holds_the_pod() -> None:
    """Behind the gates it has; a pod that has its node already can't be held."""
    after = injected(pod({"model": "llama", "wait": "gate"}, schedulingGates=[{"name": "a/b"}]))
    assert after["spec"]["schedulingGates"] == [{"name": "a/b"}, {"name": "cacheagent.io/weights"}]
    assert after["spec"]["volumes"][0]["csi"]["volumeAttributes"]["wait"] == "mount"
    assert "spec.nodeName" in refusal(pod({"model": "llama", "wait": "gate"}, nodeName="n1")).message


def test_wait_init_puts_our_container_first() -> None:
    """It satisfies `restricted`, keeps a Guaranteed pod one, and sees each model read-only."""
    resources = {"cpu": "1", "memory": "1Gi"}
    containers = [{"name": "main", "resources": {"limits": resources, "requests": resources}}]
    after = injected(
        pod({"model": "llama,qwen", "wait": "init"}, containers=containers, initContainers=[{"name": "first"}])
    )
    wait, theirs = after["spec"]["initContainers"]
    assert (wait["name"], theirs["name"]) == ("cacheagent-wait", "first")
    assert wait["image"] == SETTINGS.image
    assert wait["command"] == ["python3", "-m", "cacheagent.waiter", "/mnt/models/llama", "/mnt/models/qwen"]
    assert wait["resources"]["limits"] == wait["resources"]["requests"]
    security = wait["securityContext"]
    assert security["runAsNonRoot"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (
        mounts(after, "cacheagent-wait", "initContainers") == mounts(after, "first", "initContainers") == mounts(after)
    )
    assert {v["csi"]["volumeAttributes"]["wait"] for v in after["spec"]["volumes"]} == {"init"}


def test_wait_init_without_other_init_containers() -> None:
    """The list is made."""
    assert [c["name"] for c in injected(pod({"model": "llama", "wait": "init"}))["spec"]["initContainers"]] == [
        "cacheagent-wait"
    ]


def test_a_uri_that_is_permitted() -> None:
    """The volume carries the URI in its one spelling; its model's name is made from it."""
    after = injected(pod({"model": "S3://team-a/llama/"}))
    name = names.model_name_of_uri("s3://team-a/llama", "a")
    assert after["spec"]["volumes"][0]["name"] == f"cacheagent-{name}"
    attributes = after["spec"]["volumes"][0]["csi"]["volumeAttributes"]
    assert attributes == {"uri": "s3://team-a/llama", "view": "files", "wait": "mount"}


@pytest.mark.parametrize(
    ("annotations", "namespace", "sentence", "status"),
    [
        ({"model": "lama"}, "team-a", "there is no ModelCache 'lama'; did you mean 'llama'?", 403),
        ({"model": "zzz"}, "team-a", "there is no ModelCache 'zzz'; create it, or name one of", 403),
        ({"model": "secre"}, "team-a", "there is no ModelCache 'secre'; create it", 403),
        ({"model": "secre"}, "team-b", "did you mean 'secret'?", 403),
        ({"model": "secret"}, "team-a", "namespace 'team-a' may not use model 'secret'; ask for it", 403),
        ({"model": "secret"}, "unseen", "namespace 'unseen' may not use model 'secret'", 403),
        ({"model": "s3://team-a/x"}, "team-b", "'team-b' may not use s3://team-a/x; ask the administrator", 403),
        ({"model": "s3://team-a-private/x"}, "team-a", "may not use s3://team-a-private/x", 403),
        ({"model": "s3://team-a/../x"}, "team-a", "has an empty, '.' or '..' segment", 400),
        ({"model": "s3://team-a/x,s3://team-a/x/"}, "team-a", "names one model twice", 400),
        ({"model": "llama", "containers": "man"}, "team-a", "which the pod doesn't have; did you mean 'main'?", 400),
        ({"model": "llama", "containers": "x"}, "team-a", "names 'x', which the pod doesn't have; it has main", 400),
        ({"model": "llama,qwen", "mount-path": "llama=/a,qwen=/a/b"}, "team-a", "in each other at /a and /a/b", 400),
    ],
)  # fmt: skip
def test_one_sentence_says_what_to_change(
    annotations: dict[str, str], namespace: str, sentence: str, status: int
) -> None:
    """Unknown, forbidden, misspelt; names of models that a namespace may not use are not suggested to it."""
    refused = refusal(pod(annotations), namespace)
    assert sentence in refused.message
    assert refused.status == status


@pytest.mark.parametrize("namespace", ["team-b", "golden"])
def test_a_namespace_by_name_or_by_label(namespace: str) -> None:
    """The positive control of the refusals."""
    assert injected(pod({"model": "secret"}), namespace)["spec"]["volumes"][0]["name"] == "cacheagent-secret"


@pytest.mark.parametrize(
    ("container", "sentence"),
    [
        ({"volumeMounts": [{"name": "x", "mountPath": "/mnt/models"}]}, "has /mnt/models mounted already"),
        ({"volumeMounts": [{"name": "x", "mountPath": "/mnt/models/"}]}, "mounted already"),
        ({"volumeMounts": [{"name": "x", "mountPath": "//mnt/./models/x"}]}, "choose another cacheagent.io/mount-path"),
        ({"volumeDevices": [{"name": "x", "devicePath": "/mnt/models"}]}, "mounted already"),
    ],
)  # fmt: skip
def test_a_place_that_is_taken(container: dict[str, Any], sentence: str) -> None:
    """Nothing can be mounted there, nor below what is read-only; another path works."""
    containers = [{"name": "main", **container}]
    assert sentence in refusal(pod({"model": "llama"}, containers=containers)).message
    assert ("cacheagent-llama", "/m") in mounts(
        injected(pod({"model": "llama", "mount-path": "/m"}, containers=containers))
    )


def test_a_mount_above_is_no_hindrance() -> None:
    """A writable volume at /mnt may hold ours below it, and a sidecar's own mounts are its own."""
    above: list[dict[str, Any]] = [
        {"name": "main", "volumeMounts": [{"name": "x", "mountPath": "/mnt"}]},
        {"name": "istio-proxy"},
    ]
    above[1]["volumeMounts"] = [{"name": "x", "mountPath": "/mnt/models"}]
    assert mounts(injected(pod({"model": "llama"}, containers=above)))[1] == ("cacheagent-llama", "/mnt/models")


def test_a_volume_of_that_name() -> None:
    """Somebody else's is refused; a hand-written one of the same model is used as it is."""
    taken = [{"name": "cacheagent-llama", "emptyDir": {}}]
    assert "rename it" in refusal(pod({"model": "llama"}, volumes=taken)).message
    own = [{"name": "cacheagent-llama", "csi": {"driver": names.DRIVER, "volumeAttributes": {"model": "llama"}}}]
    after = injected(pod({"model": "llama"}, volumes=own))
    assert after["spec"]["volumes"] == own
    other = [{"name": "mine", "csi": {"driver": names.DRIVER, "volumeAttributes": {"model": "qwen"}}}]
    assert injected(pod({"model": "llama"}, volumes=other))["spec"]["volumes"][0] == other[0]


def test_a_pod_of_sidecars_only() -> None:
    """Which container reads weights has to be said."""
    assert "known as sidecars" in refusal(pod({"model": "llama"}, containers=[{"name": "queue-proxy"}])).message


def test_the_longest_name_has_a_volume_name_too() -> None:
    """A DNS label, another one for another model."""
    after = injected(pod({"model": "l" * 63}))
    assert len(after["spec"]["volumes"][0]["name"]) == 63
    assert volume_name("l" * 63) != volume_name("l" * 62)
    assert volume_name("llama") == "cacheagent-llama"


def test_a_model_that_is_being_deleted() -> None:
    """No new pod gets it."""
    models, namespaces = cluster()
    models["", "llama"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    from cacheagent.kube.webhook.catalog import MirrorCatalog

    with pytest.raises(PodRefused, match="is being deleted"):
        decide(pod({"model": "llama"}), "team-a", MirrorCatalog(models, namespaces), SETTINGS)


def test_an_injected_pod_that_is_made_again_from_its_own_text() -> None:
    """`kubectl get pod -o yaml`, edited, applied: nothing is added twice, and a changed annotation counts."""
    first = injected(pod({"model": "llama"}))
    first["metadata"]["annotations"][names.CONTAINERS] = "main"
    assert operations(first) == []
    first["metadata"]["annotations"][names.MODE] = "pv"
    assert "rename it" in refusal(first).message
