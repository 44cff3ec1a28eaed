"""Keeping certificates in a cluster: who writes, what is put back, and a whole rotation."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cacheagent.kube.api import SECRETS, WEBHOOKS, KubeRefused, KubeUnavailable
from cacheagent.kube.webhook import keeper as keeper_module
from cacheagent.kube.webhook.certificates import CertificateSettings, Stored, read_secret
from cacheagent.kube.webhook.keeper import CertificateKeeper, KeeperSettings
from cacheagent.kube.webhook.serving import ServingContext
from tests.fakes.kube import FakeKube
from tests.fakes.transfer import until

SETTINGS = KeeperSettings(namespace="ns", certificates=CertificateSettings(settle_s=0.2, overlap_s=3600))
NAME = "z-cacheagent"
DAY = timedelta(days=1)


def configuration() -> dict[str, Any]:
    """As the chart makes it: without a bundle."""
    hooks = [
        {"name": f"{n}.cacheagent.io", "clientConfig": {"service": {"name": "w", "namespace": "ns"}}} for n in "ab"
    ]
    return {"metadata": {"name": NAME}, "webhooks": hooks}


class Replica:
    """One of several, with a clock that a test moves."""

    def __init__(self, kube: FakeKube, *, leads: bool = True) -> None:
        self.leads = leads
        self.passed = timedelta()
        self.serving = ServingContext()
        self.keeper = CertificateKeeper(kube, SETTINGS, self.serving, lambda: self.leads, now=self._now)

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.passed


@asynccontextmanager
async def running(*replicas: Replica) -> AsyncIterator[None]:
    """Their keepers, for the length of the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(replica.keeper.run()) for replica in replicas]
        yield
        for task in tasks:
            task.cancel()


def secret(kube: FakeKube) -> Stored | None:
    """What the Secret holds."""
    return read_secret(kube.peek(SECRETS, SETTINGS.secret_name, namespace="ns") or {})


def published(kube: FakeKube) -> set[bytes]:
    """The bundles in the webhook configuration."""
    found = kube.peek(WEBHOOKS, NAME) or {"webhooks": []}
    return {base64.b64decode(hook["clientConfig"].get("caBundle", "")) for hook in found["webhooks"]}


def in_order(kube: FakeKube, *replicas: Replica) -> Callable[[], bool]:
    """The Secret is there, published, and served by everybody."""

    def check() -> bool:
        stored = secret(kube)
        return (
            stored is not None
            and published(kube) == {stored.bundle_pem}
            and all(replica.serving.loaded == stored.serving for replica in replicas)
        )

    return check


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(keeper_module, "RETRY_S", 0.05)


@pytest.mark.asyncio
async def test_the_leader_makes_and_everybody_loads() -> None:
    """One Secret, one bundle in every webhook, the same certificate everywhere; then nothing is written any more."""
    kube = FakeKube()
    kube.put(WEBHOOKS, configuration())
    leader, follower = Replica(kube), Replica(kube, leads=False)
    assert follower.keeper.missing()
    async with running(leader, follower):
        await until(in_order(kube, leader, follower), "certificates are in order")
        assert not follower.keeper.missing()
        assert follower.keeper.expires_at > datetime.now(UTC).timestamp() + 80 * 86400
        writes = kube.calls["create"], kube.calls["patch"], kube.calls["replace"]
        await asyncio.sleep(0.3)  # several rounds
        assert (kube.calls["create"], kube.calls["patch"], kube.calls["replace"]) == writes


@pytest.mark.asyncio
async def test_who_does_not_lead_writes_nothing() -> None:
    """Whatever is missing; and does as soon as it leads."""
    kube = FakeKube()
    kube.put(WEBHOOKS, configuration())
    replica = Replica(kube, leads=False)
    async with running(replica):
        await until(lambda: kube.watching == 2, "certificates are in order")
        await asyncio.sleep(0.2)
        assert secret(kube) is None
        assert published(kube) == {b""}
        replica.leads = True
        await until(in_order(kube, replica), "certificates are in order")


@pytest.mark.asyncio
async def test_two_that_both_believe_they_lead() -> None:
    """The API server lets one of them write; the other takes what it finds."""
    kube = FakeKube()
    kube.put(WEBHOOKS, configuration())
    one, other = Replica(kube), Replica(kube)
    async with running(one, other):
        await until(in_order(kube, one, other), "certificates are in order")


@pytest.mark.asyncio
async def test_a_bundle_that_is_taken_away_is_put_back() -> None:
    """`helm upgrade` writes the configuration without it; a third webhook gets it too."""
    kube = FakeKube()
    replica = Replica(kube)
    async with running(replica):
        await until(lambda: secret(kube), "certificates are in order")
        fresh = configuration()
        fresh["webhooks"].append({"name": "c.cacheagent.io", "clientConfig": {"caBundle": "bm9uc2Vuc2U="}})
        for state in (configuration(), fresh):
            kube.put(WEBHOOKS, state)
            await until(in_order(kube, replica), "certificates are in order")


@pytest.mark.asyncio
async def test_an_installation_that_finds_its_secret_is_trusted_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that was uninstalled leaves its Secret: the first look finds a certificate, and nobody leads yet."""
    monkeypatch.setattr(keeper_module, "LOOK_AGAIN_S", 3600.0)
    monkeypatch.setattr(keeper_module, "FIRST_LOOKS_S", 0.05)
    kube = FakeKube()
    kube.put(WEBHOOKS, configuration())
    first = Replica(kube)
    async with running(first):
        await until(in_order(kube, first), "certificates are in order")
    kube.put(WEBHOOKS, configuration())
    again = Replica(kube, leads=False)
    async with running(again):
        await until(lambda: again.serving.loaded, "the certificate of before is served")
        assert published(kube) == {b""}
        assert "does not trust" in again.keeper.untrusted(), "it can't be ready yet"
        again.leads = True
        await until(in_order(kube, again), "it is trusted")
        await until(lambda: not again.keeper.untrusted(), "it is ready")
        again.leads = False
        kube.put(WEBHOOKS, configuration())
        await asyncio.sleep(0.2)
        assert not again.keeper.untrusted(), "that is the leader's to mend"


@pytest.mark.asyncio
async def test_a_secret_that_is_lost_is_written_again() -> None:
    """The same one: who trusts it does so still."""
    kube = FakeKube()
    kube.put(WEBHOOKS, configuration())
    replica = Replica(kube)
    async with running(replica):
        await until(in_order(kube, replica), "certificates are in order")
        before = secret(kube)
        kube.remove(SECRETS, SETTINGS.secret_name, namespace="ns")
        await until(lambda: secret(kube), "certificates are in order")
        assert secret(kube) == before
        damaged = kube.peek(SECRETS, SETTINGS.secret_name, namespace="ns")
        assert damaged is not None
        damaged["data"].pop("tls.key")
        kube.put(SECRETS, damaged)
        await until(lambda: secret(kube), "certificates are in order")
        assert secret(kube) == before
        assert in_order(kube, replica)()


@pytest.mark.asyncio
async def test_a_certificate_is_renewed_everywhere() -> None:
    """At two thirds of its life; the authority and the bundle stay."""
    kube = FakeKube()
    kube.put(WEBHOOKS, configuration())
    leader, follower = Replica(kube), Replica(kube, leads=False)
    async with running(leader, follower):
        await until(in_order(kube, leader, follower), "certificates are in order")
        before = secret(kube)
        assert before is not None
        leader.passed = 61 * DAY
        await until(lambda: follower.serving.loaded != before.serving, "certificates are in order")
        await until(in_order(kube, leader, follower), "certificates are in order")
        after = secret(kube)
        assert after is not None
        assert (after.ca, after.bundle) == (before.ca, before.bundle)


@pytest.mark.asyncio
async def test_an_authority_is_replaced_without_a_gap() -> None:
    """At every change that anybody can see, what the replicas serve was published before."""
    kube = FakeKube()
    kube.put(WEBHOOKS, configuration())
    leader, follower = Replica(kube), Replica(kube, leads=False)
    async with running(leader, follower):
        await until(in_order(kube, leader, follower), "certificates are in order")
        old = secret(kube)
        assert old is not None
        leader.passed = 2500 * DAY

        def replaced() -> bool:
            stored = secret(kube)
            assert stored is not None
            serves_new = leader.serving.loaded != old.serving or follower.serving.loaded != old.serving
            if stored.ca != old.ca or serves_new:  # then every API server has had both for a while
                assert all(stored.ca.certificate in bundle for bundle in published(kube))
            return stored.ca != old.ca and in_order(kube, leader, follower)()

        await until(replaced, "certificates are in order")
        both = secret(kube)
        assert both is not None
        assert old.ca.certificate in both.bundle
        leader.passed += DAY
        await until(lambda: published(kube) == {both.ca.certificate}, "certificates are in order")


@pytest.mark.asyncio
async def test_an_api_server_that_fails_stops_nobody() -> None:
    """What is loaded is served, and what is due is done afterwards."""
    kube = FakeKube()
    kube.put(WEBHOOKS, configuration())
    kube.fail_next("create", KubeUnavailable("busy"), times=2, resource=SECRETS)
    kube.fail_next("patch", KubeRefused("no"), times=2, resource=WEBHOOKS)
    replica = Replica(kube)
    async with running(replica):
        await until(in_order(kube, replica), "certificates are in order")
        kube.set_down(True)
        await asyncio.sleep(0.2)
        assert not replica.keeper.missing()
        kube.set_down(False)
        kube.put(WEBHOOKS, configuration())
        await until(in_order(kube, replica), "certificates are in order")
