"""csi-sanity, the conformance suite of the Container Storage Interface, on the driver with real mounts."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

from csi.registration import driver_socket
from tests.conftest import missing
from tests.fakes.agent_api import FakeAgent
from tests.fakes.csi_node import POD_UID, CsiNode

LIMIT_S = 240

SKIPPED = {
    "GetCapacity not supported": "a cache has no capacity that anybody may claim",
    "ListVolumes not supported": "volumes are versions of models: the agent's API and ModelCache list them",
    "capacity of the volume is unknown": "a volume is as large as the model, whatever size is asked for",
    "Snapshot not supported": "a version never changes",
    "CreateSnapshot not supported": "a version never changes",
    "DeleteSnapshot not supported": "a version never changes",
    "ListSnapshots not supported": "a version never changes",
    "Volume Cloning not supported": "every volume is one shared copy",
    "Modify volume not supported": "a version never changes",
    "Modify Volume not supported": "a version never changes",
    "ControllerModifyVolume not supported": "a version never changes",
    "ControllerUnpublishVolume not supported": "nothing is attached: the weights are on the node",
    "ControllerPublishVolume not supported": "nothing is attached: the weights are on the node",
    "Controller Publish, UnpublishVolume not supported": "nothing is attached: the weights are on the node",
    "ControllerExpandVolume not supported": "a volume is as large as the model",
    "NodeExpandVolume not supported": "a volume is as large as the model",
    "NodeStageVolume not supported": "one bind mount for each pod: there is nothing to share below it",
    "NodeUnstageVolume not supported": "one bind mount for each pod: there is nothing to share below it",
    "Service does not have single node multi writer capability": "nobody writes",
    "GetSnapshot not supported": "a version never changes",
    "GroupControllerService not supported": "a version never changes, so there are no snapshots of groups",
}
"""What the suite says when it leaves a test out, and why this driver is right not to have it."""


@pytest.mark.slow
@pytest.mark.asyncio
async def test_csi_sanity_passes(tmp_path: Path) -> None:
    """Nothing fails, and nothing is left out but what a driver of this kind can't have."""
    binaries = _kube_binaries()
    sanity = next(binaries.path_of(program) for program in binaries.PROGRAMS if program.name == "csi-sanity")
    if not sanity.exists():
        missing("csi-sanity", "build it with `python3 scripts/kube_binaries.py`")
    report, parameters = tmp_path / "report.xml", tmp_path / "parameters.yaml"
    parameters.write_text(
        f"model: tiny\ncsi.storage.k8s.io/pod.namespace: team-a\ncsi.storage.k8s.io/pod.uid: {POD_UID}\n"
    )
    with CsiNode() as node:
        async with FakeAgent(node.agent_socket) as agent:
            await agent.publish("tiny")
            await asyncio.to_thread(node.start)
            command = [
                str(sanity),
                f"-csi.endpoint=unix://{driver_socket(node.kubelet)}",
                f"-csi.mountdir={node.target().parent.parent / 'sanity'}",
                f"-csi.stagingdir={tmp_path / 'staging'}",
                f"-csi.testvolumeparameters={parameters}",
                f"-ginkgo.junit-report={report}",
                "-ginkgo.no-color",
            ]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=LIMIT_S)
            assert done.returncode == 0, done.stdout[-20_000:]
            assert not [mount for mount in node.mounts() if "kubernetes.io~csi" in mount.target]
    passed, skipped = _read(report)
    assert set(skipped) == set(SKIPPED), set(skipped) ^ set(SKIPPED)
    assert len(passed) >= 30
    print(f"csi-sanity: {len(passed)} passed, {sum(skipped.values())} left out")  # noqa: T201
    for reason, count in sorted(skipped.items()):
        print(f"  {count} {reason}: {SKIPPED[reason]}")  # noqa: T201


def _read(report: Path) -> tuple[list[str], dict[str, int]]:
    """Names of what passed, and how many were skipped by which reason."""
    passed, skipped = [], dict[str, int]()
    for case in ET.parse(report).iter("testcase"):
        status = case.get("status")
        if status == "passed":
            passed.append(case.get("name") or "")
        elif status == "skipped":
            element = case.find("skipped")
            reason = "" if element is None else (element.get("message") or "").removeprefix("skipped - ")
            skipped[reason] = skipped.get(reason, 0) + 1
    return passed, skipped


def _kube_binaries() -> ModuleType:
    place = Path(__file__).parents[2] / "scripts/kube_binaries.py"
    spec = importlib.util.spec_from_file_location("kube_binaries", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
