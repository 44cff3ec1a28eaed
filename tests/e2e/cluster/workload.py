"""Small pods for tests: one container that runs a few lines of Python. Values only; `Cluster.apply` takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.e2e.cluster.image import PRODUCT_IMAGE

WAIT_FOR_EVER = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the first process of a container gets no other signal
signal.sigwait({signal.SIGTERM})
"""


def python_pod(
    name: str,
    code: str = WAIT_FOR_EVER,
    *,
    node: str | None = None,
    namespace: str = "default",
    metadata: Mapping[str, Any] | None = None,
    mounts: Sequence[Mapping[str, Any]] = (),
    volumes: Sequence[Mapping[str, Any]] = (),
    container: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A pod that runs `code` once, on `node` if one is named; `container`, `spec`, `metadata` add to or replace fields.

    It gets two seconds to end: with none, the effects of a deletion couldn't be seen.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}, **(metadata or {})},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
            "containers": [
                {
                    "name": "main",
                    "image": PRODUCT_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/usr/bin/python3", "-u", "-c", code],
                    "volumeMounts": list(mounts),
                    **(container or {}),
                }
            ],
            "volumes": list(volumes),
            **(spec or {}),
        },
    }


def host_path(name: str, path: str) -> dict[str, Any]:
    """A directory of the node itself, made if it is missing."""
    return {"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
