"""What the scenarios are made of: weights at an origin, ModelCaches of them, pods that read them, and what pods say."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cacheagent.demo.bucket import Bucket
from cacheagent.demo.checkpoint import find_minilm, write_checkpoint
from cacheagent.demo.seaweedfs import S3Server
from cacheagent.kube import names
from cacheagent.kube.names import API_VERSION
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.product import STORE
from tests.e2e.cluster.waiting import NotSeen, wait_until
from tests.e2e.cluster.workload import WAIT_FOR_EVER, python_pod

BUCKET = "models"

READ = """
import hashlib, json, os, time
started = time.time()
roots = os.environ.get("WEIGHTS", "/mnt/models").split(":")
files = {}
for root in roots:
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            shown = os.path.relpath(path, root) if len(roots) == 1 else path
            with open(path, "rb") as file:
                files[shown] = hashlib.file_digest(file, "sha256").hexdigest()
try:
    open(os.path.join(roots[0], "written"), "w")
    write = "it could be written"
except OSError as error:
    write = error.strerror
print(json.dumps({"started": started, "read": time.time(), "files": files, "write": write}))
"""
"""Prints one line: when it started, the SHA-256 of every file below /mnt/models, and how an attempt to write ended."""

READ_AND_STAY = READ + WAIT_FOR_EVER
START_AND_STAY = "import time; print(time.time())" + WAIT_FOR_EVER


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """What lies at the origin. `files`: path → SHA-256 of its content."""

    uri: str
    endpoint: str
    region: str
    files: Mapping[str, str]
    size_bytes: int


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod with `READ` printed. Times are `time.time()` in the container."""

    started: float
    read: float
    files: dict[str, str]
    write: str


# --- at the origin


def upload(store: S3Server, prefix: str, directory: Path) -> Weights:
    """Put every file of a directory below s3://models/<prefix>."""
    bucket = Bucket(store, BUCKET)  # SeaweedFS makes it at the first upload
    size_bytes = bucket.upload(directory, prefix)
    files = {str(path.relative_to(directory)): _sha256(path) for path in sorted(directory.rglob("*")) if path.is_file()}
    return Weights(
        uri=f"s3://{BUCKET}/{prefix}",
        endpoint=store.endpoint,
        region=store.region,
        files=files,
        size_bytes=size_bytes,
    )


def upload_checkpoint(store: S3Server, prefix: str, *, size_bytes: int, shards: int = 2, seed: int = 0) -> Weights:
    """A checkpoint like Llama's of about that size; equal arguments give equal bytes."""
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(Path(directory), size_bytes=size_bytes, shards=shards, seed=seed)
        return upload(store, prefix, Path(directory))


def upload_minilm(store: S3Server, prefix: str = "minilm") -> Weights:
    """The real model all-MiniLM-L6-v2 (91 MB). Raises `UsageError` where its package isn't installed."""
    return upload(store, prefix, find_minilm())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- ModelCaches


def model_cache(name: str, weights: Weights, *, source: Mapping[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A ModelCache of weights; further fields of `spec.source` and of `spec` as they are in YAML."""
    where = {"uri": weights.uri, "endpoint": weights.endpoint, "region": weights.region, "credentials": STORE}
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelCache",
        "metadata": {"name": name},
        "spec": {"source": {**where, **(source or {})}, **spec},
    }


def model_status(cluster: Cluster, name: str) -> dict[str, Any]:
    """Its status; empty before the controller has seen it."""
    return dict(cluster.get("modelcache", name).get("status", {}))


def wait_until_cached(cluster: Cluster, name: str, *, nodes: int, limit: float = 90.0) -> dict[str, Any]:
    """Its status, once it is Ready with the current version on so many nodes."""

    def ready() -> dict[str, Any]:
        found = cluster.get("modelcache", name)
        status = found.get("status", {})
        if status.get("observedGeneration") != found["metadata"]["generation"] or not status.get("digest"):
            raise NotYet(json.dumps(status))
        if condition(status, "Ready") != "True" or status["nodes"]["ready"] != nodes:
            raise NotYet(json.dumps(status))
        return dict(status)

    return wait_until(ready, f"model {name} is ready on {nodes} nodes", limit)


class NotYet(Exception):
    """What was looked at isn't as it should be; the message has it."""


def condition(status: Mapping[str, Any], kind: str) -> str:
    """Status of one of its conditions, or nothing."""
    return next((str(each["status"]) for each in status.get("conditions", []) if each["type"] == kind), "")


def delete_models(cluster: Cluster, *model_names: str) -> None:
    """And wait until the nodes forgot them: the next test may use the name."""
    cluster.kubectl("delete", "modelcache", *model_names, "--ignore-not-found", "--timeout=60s")


def clean_up(cluster: Cluster, namespace: str, *model_names: str) -> None:
    """A namespace's pods go, then the models, which nobody holds any more."""
    cluster.kubectl("delete", "pods", "--all", "-n", namespace, "--timeout=60s")
    delete_models(cluster, *model_names)


def allow_volumes(cluster: Cluster, model: str, *namespaces: str) -> None:
    """Namespaces that get a local PersistentVolume of the model."""
    body = {"spec": {"localPersistentVolumes": {"namespaces": namespaces}}}
    cluster.kubectl("patch", "modelcache", model, "--type=merge", "-p", json.dumps(body))


def our_volumes(cluster: Cluster, namespace: str) -> list[str]:
    """Names of the PersistentVolumes whose claims are in a namespace."""
    found = cluster.get("persistentvolumes")["items"]
    return [
        each["metadata"]["name"] for each in found if each["spec"].get("claimRef", {}).get("namespace") == namespace
    ]


# --- pods that use them


def asks_for(model: str, **options: str) -> dict[str, str]:
    """`asks_for("llama", wait="init", mount_path="/weights")`, as a pod carries them."""
    return {
        names.MODEL: model,
        **{f"{names.GROUP}/{key.replace('_', '-')}": value for key, value in options.items()},
    }


def reading_pod(
    name: str,
    namespace: str,
    model: str,
    code: str = READ_AND_STAY,
    *,
    node: str | None = None,
    options: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A pod with only the annotation (and `options`: `{"wait": "init"}`); `more` is for `python_pod`."""
    metadata = {"annotations": asks_for(model, **(options or {}))}
    return python_pod(name, code, node=node, namespace=namespace, metadata=metadata, **more)


def deployment(
    name: str,
    namespace: str,
    pod: Mapping[str, Any],
    *,
    replicas: int = 1,
    kind: str = "Deployment",
    **spec: Any,
) -> dict[str, Any]:
    """A workload of `apps/v1` whose template is `pod`. `spec` adds fields; a DaemonSet has no replicas."""
    template = {
        "metadata": {"labels": {"app": name}, "annotations": pod["metadata"].get("annotations", {})},
        "spec": {**pod["spec"], "restartPolicy": "Always"},
    }
    count = {} if kind == "DaemonSet" else {"replicas": replicas}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template, **count, **spec},
    }


def job(name: str, namespace: str, pod: Mapping[str, Any], *, pods: int = 1) -> dict[str, Any]:
    """A Job that runs so many pods at once."""
    meta = {"labels": {"app": name}, "annotations": pod["metadata"].get("annotations", {})}
    template = {"metadata": meta, "spec": pod["spec"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"completions": pods, "parallelism": pods, "template": template},
    }


def pods_of(cluster: Cluster, namespace: str, app: str) -> list[dict[str, Any]]:
    """Those with the label, without those that are being deleted."""
    found = cluster.get("pods", "-n", namespace, "-l", f"app={app}")["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def wait_until_running(cluster: Cluster, namespace: str, app: str, *, pods: int = 1, limit: float = 90.0) -> list[Any]:
    """The pods of a workload (or the pod of that name), once so many run with all containers."""

    def running() -> list[Any]:
        found = pods_of(cluster, namespace, app)
        if len(found) != pods or not all(_is_ready(pod) for pod in found):
            raise NotYet(", ".join(_shown(pod) for pod in found) or "no pods")
        return found

    try:
        return wait_until(running, f"{pods} pods of {app} run", limit)
    except NotSeen as error:
        told = [each for pod in pods_of(cluster, namespace, app) for each in events_of(cluster, namespace, pod)]
        raise NotSeen(f"{error}\nevents: {told}") from None


def printed(cluster: Cluster, namespace: str, pod: str, *, container: str = "main", limit: float = 60.0) -> str:
    """The first line that a container prints, once it is there."""

    def line() -> str:
        return next(iter(cluster.kubectl("logs", "-n", namespace, pod, "-c", container).splitlines()), "")

    return wait_until(line, f"{pod} prints a line", limit)


def read_report(cluster: Cluster, namespace: str, pod: str, *, limit: float = 60.0) -> Seen:
    """What a pod with `READ` printed."""
    return msgspec.json.decode(printed(cluster, namespace, pod, limit=limit), type=Seen)


def events_of(cluster: Cluster, namespace: str, pod: Mapping[str, Any] | str) -> list[str]:
    """`Reason: message` of a pod's events, oldest first."""
    name = pod if isinstance(pod, str) else pod["metadata"]["name"]
    selector = f"involvedObject.name={name}"
    found = cluster.get("events", "-n", namespace, "--field-selector", selector)["items"]
    found.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    return [f"{event['reason']}: {event['message']}" for event in found]


def _is_ready(pod: Mapping[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))


def _shown(pod: Mapping[str, Any]) -> str:
    waiting = [each["state"] for each in pod["status"].get("containerStatuses", []) if "running" not in each["state"]]
    return f"{pod['metadata']['name']}: {pod['status'].get('phase')} {waiting}"
