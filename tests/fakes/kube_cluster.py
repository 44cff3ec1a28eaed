"""What stands in an API server before a test begins: our definitions, namespaces, nodes with their agents' pods."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from cacheagent.kube.api import NAMESPACES, NODES, PODS, KubeError, Object, Resource
from cacheagent.kube.client import KubeClient
from cacheagent.kube.names import AGENT_COMPONENT

FOLDER: Final = Path(__file__).parents[2] / "daemonset/chart/files/crds"
DEFINITIONS: Final = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
PATIENCE_S: Final = 60.0
READY: Final = {"conditions": [{"type": "Ready", "status": "True"}]}


async def install_definitions(api: KubeClient) -> None:
    """Those of the chart; on return all are served."""
    served = []
    for file in sorted(FOLDER.glob("*.yaml")):
        definition = yaml.safe_load(file.read_text())
        await api.create(DEFINITIONS, definition)
        spec, names = definition["spec"], definition["spec"]["names"]
        served += [
            Resource(spec["group"], version["name"], names["plural"], names["kind"], spec["scope"] == "Namespaced")
            for version in spec["versions"]
            if version["served"]
        ]
    for resource in served:
        await _wait_until_served(api, resource)


async def make_namespaces(api: KubeClient, *names: str) -> None:
    for name in names:
        await api.create(NAMESPACES, {"metadata": {"name": name}})


async def make_node(
    api: KubeClient,
    name: str,
    namespace: str,
    *,
    labels: Mapping[str, str] | None = None,
    taints: Sequence[Object] = (),
) -> None:
    """A Node and the pod of its agent in `namespace`, both ready."""
    await api.create(NODES, {"metadata": {"name": name, "labels": dict(labels or {})}, "spec": {"taints": [*taints]}})
    await api.patch(NODES, name, {"status": READY}, subresource="status")
    body: Object = {
        "metadata": {"name": f"agent-{name}", "labels": AGENT_COMPONENT},
        "spec": {
            "containers": [{"name": "agent", "image": "i"}],
            "nodeName": name,
            "tolerations": [{"operator": "Exists"}],
        },
    }
    await api.create(PODS, body, namespace=namespace)
    await api.patch(PODS, f"agent-{name}", {"status": READY}, namespace=namespace, subresource="status")


async def _wait_until_served(api: KubeClient, resource: Resource) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            await api.list(resource)
        except KubeError:
            assert time.monotonic() < end, f"{resource.plural} are not served"
            await asyncio.sleep(0.05)
        else:
            return
