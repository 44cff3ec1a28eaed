"""Real KServe beside our webhook on a real API server: the fixtures are what it makes, and both orders of the webhooks
serve the same pod. No kubelet runs here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from cacheagent.kube import names
from cacheagent.kube.webhook.certificates import CertificateSettings
from tests.fakes.kube_server import running_api_server
from tests.fakes.webhook_scene import OPTED_IN, Scene, in_a_thread
from tests.stacks.kserve import CONFIGURATION, LATER, NUMBERED, KServe, Object, running_kserve

pytestmark = [pytest.mark.stacks, pytest.mark.timeout(1800)]

FIXTURES: Final = Path(__file__).parents[1] / "fixtures/stacks/kserve"
INPUT: Final = "inferenceservices"


class Both:
    """KServe, and our webhook."""

    def __init__(self, kserve: KServe, scene: Scene) -> None:
        self.kserve = kserve
        self.scene = scene

    def pod(self, name: str, namespace: str) -> Object:
        """What the API server would store of an InferenceService's pod, without what it numbers and dates."""
        template = self.kserve.template_of(name, "team-a")
        made: Object = self.scene.run(self.scene.try_pod(template, namespace))
        made.pop("status", None)
        made["metadata"] = {key: value for key, value in made["metadata"].items() if key not in NUMBERED}
        return made


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Installed, with the InferenceServices of the fixtures in a namespace that didn't opt in."""
    folder = tmp_path_factory.mktemp("kserve")
    with (
        running_api_server(folder) as server,
        running_kserve(server.kubeconfig, folder) as kserve,
        in_a_thread() as loop,
    ):
        scene = Scene(server, loop)
        ours = scene.up(CertificateSettings())
        scene.run(ours.__aenter__())
        try:
            for item in yaml.safe_load_all((FIXTURES / f"{INPUT}.yaml").read_text()):
                if item["kind"] == "InferenceService":
                    item["metadata"].setdefault("annotations", {})["serving.kserve.io/deploymentMode"] = "Standard"
                kserve.apply(item)
            metadata = {"name": "default", "namespace": OPTED_IN}
            kserve.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
            yield Both(kserve, scene)
        finally:
            scene.run(ours.__aexit__(None, None, None))


def fixture(name: str) -> Any:
    return yaml.safe_load((FIXTURES / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", sorted({path.stem for path in FIXTURES.glob("*.yaml")} - {INPUT, "sklearn-template"}))
def test_the_fixtures_are_what_kserve_makes(both: Both, name: str) -> None:
    """Without us: the namespace has no label."""
    assert both.pod(name, "team-a") == fixture(name)


@pytest.mark.parametrize("configuration", [CONFIGURATION, LATER])
def test_both_orders_serve_the_same_pod(both: Both, configuration: str) -> None:
    """KServe's webhook first: ours has one call. Ours first: it finds nothing, and is called again."""
    if configuration == LATER:
        both.kserve.configure(LATER)
        both.kserve.remove(CONFIGURATION)
    calls = {CONFIGURATION: ["patched"], LATER: ["patched", "unchanged"]}[configuration]
    made = both.scene.run(_until_calls(both, calls))
    (container,) = made["spec"]["containers"]
    assert {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]} == {
        "/mnt/models": "cacheagent-llama"
    }
    (initializer,) = made["spec"]["initContainers"]
    wanted = fixture("sklearn-s3")["spec"]["initContainers"][0]
    assert initializer == {**wanted, "command": ["/bin/true"]}
    assert made["metadata"]["labels"][names.INJECTED_LABEL] == "true"


async def _until_calls(both: Both, calls: list[str]) -> Object:
    """A pod, once the API server has learned of the configurations: reviews end as they shall."""
    template = await asyncio.to_thread(both.kserve.template_of, "sklearn-s3", "team-a")
    async with asyncio.timeout(60):
        while True:
            both.scene.results.clear()
            made = await both.scene.try_pod(template, OPTED_IN)
            if sorted(both.scene.results.elements()) == calls:
                return made
            await asyncio.sleep(0.1)


def test_an_unknown_uri_is_kserves_own(both: Both) -> None:
    """In a namespace that opted in, to the byte what it is elsewhere."""
    assert both.pod("sklearn-unknown", OPTED_IN) == both.pod("sklearn-unknown", "team-a")
    assert both.pod("sklearn-pvc", OPTED_IN) == both.pod("sklearn-pvc", "team-a")
