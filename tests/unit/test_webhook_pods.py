"""Pods of every shape: whatever comes in is admitted with a patch that applies, or refused with a sentence."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.errors import UsageError
from cacheagent.kube import names
from cacheagent.kube.webhook.catalog import to_catalog_model
from cacheagent.kube.webhook.refusal import PodRefused
from cacheagent.kube.webhook.review import AdmissionRequest, allow, deny, parse_review, patch_for
from tests.fakes.webhook import SETTINGS, apply_patch, catalog, model, pod

UNKNOWN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
"""Fields of a later Kubernetes, which must come through untouched."""
NAMES = st.sampled_from(["main", "side", "queue-proxy", "istio-proxy", "prepare", "cacheagent-wait"])
PATHS = st.sampled_from(["/mnt/models", "/mnt", "/mnt/models/x", "/data", "/"])
VOLUMES = st.sampled_from(["cacheagent-llama", "x", "y"])
MOUNTS = st.lists(st.fixed_dictionaries({"name": VOLUMES, "mountPath": PATHS}, optional={"new": UNKNOWN}), max_size=2)
ENV = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(["HF_HUB_CACHE", "X"]), "value": st.text(max_size=3)}), max_size=2
)
CONTAINER = st.fixed_dictionaries(
    {"name": NAMES},
    optional={
        "volumeMounts": MOUNTS | st.none(),
        "env": ENV | st.none(),
        "restartPolicy": st.just("Always"),
        "new": UNKNOWN,
    },
)
VOLUME = st.fixed_dictionaries(
    {"name": VOLUMES},
    optional={
        "csi": st.fixed_dictionaries(
            {"driver": st.sampled_from([names.DRIVER, "other"])},
            optional={
                "volumeAttributes": st.fixed_dictionaries({"model": st.sampled_from(["llama", "z"])}),
                "new": UNKNOWN,
            },
        ),
        "emptyDir": st.just({}),
    },
)
AFFINITY = st.fixed_dictionaries({}, optional={"nodeAffinity": UNKNOWN | st.just({}), "podAffinity": UNKNOWN})
SPEC = st.fixed_dictionaries(
    {"containers": st.lists(CONTAINER, max_size=3)},
    optional={
        "initContainers": st.lists(CONTAINER, max_size=3) | st.none(),
        "volumes": st.lists(VOLUME, max_size=2) | st.none(),
        "affinity": AFFINITY | st.none(),
        "schedulingGates": st.lists(st.just({"name": names.GATE}), max_size=1) | st.none(),
        "nodeName": st.sampled_from(["", "n1"]),
        "new": UNKNOWN,
    },
)
ANNOTATIONS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(
            ["llama", "llama,qwen", "hub", "fresh", "hf://org/m", "s3://team-a/m", "secret", "none"]
        )
    },
    optional={
        "mount-path": st.sampled_from(["/m", "/mnt", "llama=/m"]),
        "containers": st.sampled_from(["main", "main,side", "prepare"]),
        "mode": st.sampled_from(["csi", "pv"]),
        "wait": st.sampled_from(["mount", "gate", "init"]),
        "view": st.sampled_from(["files", "hf"]),
        "page-cache": st.sampled_from(["true", "false"]),
        "decision": UNKNOWN.map(json.dumps),
    },
)
METADATA = st.fixed_dictionaries(
    {}, optional={"labels": st.dictionaries(st.text(max_size=3), st.text(max_size=3)), "new": UNKNOWN}
)


def request(obj: Any, **fields: Any) -> AdmissionRequest:
    """A request to make this pod."""
    whole = {
        "uid": "u",
        "operation": "CREATE",
        "namespace": "team-a",
        "kind": {"group": "", "kind": "Pod"},
        "object": obj,
    }
    return msgspec.convert({**whole, **fields}, AdmissionRequest)


def patch_of(obj: Any) -> list[dict[str, Any]] | None:
    """The operations, or None for a refusal, which must be one sentence."""
    try:
        return patch_for(request(obj), catalog(), SETTINGS)
    except PodRefused as refused:
        sentence = refused.message
    assert sentence
    assert "\n" not in sentence
    return None


def contains(after: Any, before: Any) -> bool:
    """Everything of `before` is in `after`, in its order; only additions are there as well."""
    if isinstance(before, dict) and isinstance(after, dict):
        return all(key in after and contains(after[key], value) for key, value in before.items())
    if isinstance(before, list) and isinstance(after, list):
        left = iter(after)
        return all(any(contains(there, item) for there in left) for item in before)
    return bool(before is None or (after == before and type(after) is type(before)))


@given(annotations=ANNOTATIONS, spec=SPEC, metadata=METADATA)
def test_pods_are_patched_once_or_refused(annotations: dict[str, str], spec: dict[str, Any], metadata: Any) -> None:
    """The patch applies, adds only, takes nothing away, is found complete by a second pass, and is not in the
    request."""
    before = pod(annotations, **spec)
    before["metadata"] |= metadata
    sent = copy.deepcopy(before)
    operations = patch_of(before)
    assert before == sent
    if operations is None:
        return
    after = apply_patch(before, operations)
    kept = copy.deepcopy(before)
    kept["metadata"]["annotations"].pop(names.DECISION, None)
    kept["metadata"].get("labels", {}).pop(names.INJECTED_LABEL, None)
    assert contains(after, kept)
    assert patch_of(after) == []


@given(
    broken=st.dictionaries(st.sampled_from(["metadata", "spec", "x"]), UNKNOWN)
    | st.builds(lambda spec: pod({"model": "llama"}) | {"spec": spec}, st.dictionaries(
        st.sampled_from(["containers", "initContainers", "volumes", "affinity", "schedulingGates"]), UNKNOWN))
    | st.builds(lambda metadata: pod({}) | {"metadata": metadata}, UNKNOWN)
    | UNKNOWN
)  # fmt: skip
def test_what_is_no_pod_is_refused_without_a_defect(broken: Any) -> None:
    """The API server sends no such thing; if it did, there is a sentence and no traceback."""
    patch_of(broken)


@pytest.mark.parametrize(
    "fields",
    [{"operation": "UPDATE"}, {"operation": "DELETE"}, {"subResource": "status"},
     {"kind": {"group": "apps", "kind": "Pod"}},
     {"kind": {"group": "", "kind": "Node"}}, {"operation": "CONNECT", "object": None}],
)  # fmt: skip
def test_what_is_not_a_new_pod_is_let_through(fields: dict[str, Any]) -> None:
    """With the same pod as a positive control."""
    written = pod({"model": "llama"})
    assert patch_for(request(written, **fields), catalog(), SETTINGS) == []
    assert patch_for(request(written), catalog(), SETTINGS)


def test_the_namespace_is_the_requests() -> None:
    """A pod made by a controller names none itself, and one that names another is not believed."""
    written = pod({"model": "secret"})
    written["metadata"]["namespace"] = "team-b"
    with pytest.raises(PodRefused, match="namespace 'team-a' may not"):
        patch_for(request(written), catalog(), SETTINGS)
    assert patch_for(request(written, namespace="team-b"), catalog(), SETTINGS)


def test_reviews_are_read_and_written() -> None:
    """The shape that the API server understands."""
    body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "abc", "operation": "CREATE", "namespace": "n", "object": {"x": 1}, "userInfo": {"new": [1]},
        "kind": {"group": "", "version": "v1", "kind": "Pod"}}})  # fmt: skip
    parsed = parse_review(body.encode())
    assert (parsed.uid, parsed.object, parsed.is_new_pod) == ("abc", {"x": 1}, True)
    answer = json.loads(allow("abc", []))
    assert answer == {
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": "abc", "allowed": True},
    }  # fmt: skip
    refused = json.loads(deny("abc", "no", 403))["response"]
    assert refused == {
        "uid": "abc", "allowed": False, "status": {"code": 403, "reason": "Forbidden", "message": "cacheagent: no"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [b"", b"x", b"null", b"[]", b"{}", b"\xff\xfe", b'{"apiVersion": "admission.k8s.io/v1"}', b"[" * 100_000,
     b'{"apiVersion": "admission.k8s.io/v1", "request": {}}',
     b'{"apiVersion": "admission.k8s.io/v1beta1", "request": {"uid": "u"}}'],
)  # fmt: skip
def test_what_is_no_review(body: bytes) -> None:
    """Refused before anything is decided."""
    with pytest.raises(UsageError, match="AdmissionReview"):
        parse_review(body)


@given(body=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """No other exception."""
    try:
        parse_review(body)
    except UsageError:
        return


def test_what_a_catalog_reads_of_a_model() -> None:
    """A pinned digest is the current one; older ones may still be named; fields of a later release are left alone."""
    pinned, resolved, older = (f"sha256:{digit * 64}" for digit in "123")
    raw = model("m", futureField={"x": 1})
    raw["spec"]["digest"] = pinned
    raw["status"] |= {"digest": resolved, "previousDigests": [older, resolved], "new": 1}
    read = to_catalog_model(raw)
    assert (read.digest, read.versions) == (pinned, (pinned, resolved, older))
    assert to_catalog_model({"metadata": {"name": "n"}, "spec": {"source": {"uri": "hf://a/b@c"}}}).repo_id == "a/b"
