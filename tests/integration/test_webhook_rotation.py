"""The webhook's certificates and a real API server, which refuses what it doesn't trust."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from cacheagent.kube.api import WEBHOOKS
from cacheagent.kube.webhook import keeper as keeper_module
from cacheagent.kube.webhook.certificates import CertificateSettings
from tests.fakes.kube_server import ApiServer, running_api_server
from tests.fakes.webhook import pod
from tests.fakes.webhook_scene import CONFIGURATION, Scene

pytestmark = [pytest.mark.kube_api, pytest.mark.slow]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with running_api_server(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.mark.timeout(300)
@pytest.mark.asyncio
async def test_certificates_and_authorities_change_without_a_lost_pod(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is short-lived here: pods are created all the while, through renewals and two new authorities; then a
    bundle that somebody takes away is put back."""
    monkeypatch.setattr(keeper_module, "LOOK_AGAIN_S", 0.2)
    rules = CertificateSettings(life_s=60, ca_life_s=80, renew_at=0.07, settle_s=1, overlap_s=1)
    scene = Scene(server, asyncio.get_running_loop())
    async with scene.up(rules) as keeper:
        certificates: set[bytes] = set()
        authorities: set[bytes] = set()
        created = 0
        end = time.monotonic() + 120
        while len(authorities) < 3 or len(certificates) < 4:
            assert time.monotonic() < end, (len(authorities), len(certificates))
            await asyncio.gather(*(scene.try_pod(pod({"model": "llama"})) for _ in range(2)))
            stored = keeper._stored
            assert stored is not None
            certificates.add(stored.serving.certificate)
            authorities.add(stored.ca.certificate)
            created += 2
        assert created > 20
        await _bundle_is_put_back(scene)


async def _has_bundle(scene: Scene) -> bool:
    found = await scene.client.get(WEBHOOKS, CONFIGURATION)
    return bool(found["webhooks"][0]["clientConfig"].get("caBundle"))


async def _bundle_is_put_back(scene: Scene) -> None:
    before = await scene.client.get(WEBHOOKS, CONFIGURATION)
    assert before["webhooks"][0]["clientConfig"]["caBundle"]
    emptied = json.loads(json.dumps(before))
    emptied["webhooks"][0]["clientConfig"]["caBundle"] = ""
    emptied["metadata"].pop("resourceVersion")
    await scene.client.patch(WEBHOOKS, CONFIGURATION, {"webhooks": emptied["webhooks"]})
    async with asyncio.timeout(60):
        while not await _has_bundle(scene):  # noqa: ASYNC110 - the API server is asked
            await asyncio.sleep(0.05)
    await scene.until_trusted()
