"""Keeping the webhook's certificates: every replica loads what the Secret holds; the leader alone writes, the Secret
first and then the `caBundle` of the webhook configuration, which it also puts back when somebody (`helm upgrade`) took
it away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from cryptography import x509

from cacheagent.kube.api import (
    SECRETS,
    WEBHOOKS,
    KubeApi,
    KubeConflict,
    KubeError,
    KubeNotFound,
    Object,
)
from cacheagent.kube.mirror import Mirror
from cacheagent.kube.names import MANAGED_BY, MANAGED_BY_US
from cacheagent.kube.webhook.certificates import (
    CertificateSettings,
    Stored,
    next_step,
    read_secret,
    secret_data,
    take_step,
    utc_now,
)
from cacheagent.kube.webhook.serving import ServingContext
from cacheagent.model import Value

LOG: Final = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 30.0
"""Certificates come due without anything changing in the cluster. Chosen; a change is seen at once."""
FIRST_LOOKS_S: Final = 0.5
"""As long as there is no certificate, or the API server is not told whom to trust (a release that was installed again
finds its Secret, and an empty `caBundle`): somebody is about to lead and to do it. Chosen."""
RETRY_S: Final = 2.0


class KeeperSettings(Value):
    """`namespace`: of Secret and service. `secret_name`, `service`, `configuration` (the MutatingWebhookConfiguration):
    names."""

    namespace: str
    secret_name: str = "cacheagent-webhook"  # noqa: S105 - an object's name
    service: str = "cacheagent-webhook"
    configuration: str = "z-cacheagent"
    certificates: CertificateSettings = CertificateSettings()

    @property
    def dns_names(self) -> tuple[str, ...]:
        """What the API server calls the service, first, and its longer name."""
        plain = f"{self.service}.{self.namespace}.svc"
        return plain, f"{plain}.cluster.local"


class CertificateKeeper:
    """`serving` gets the certificate. `is_leader`: whether this replica may write, asked before each write. One event
    loop."""

    def __init__(
        self,
        api: KubeApi,
        settings: KeeperSettings,
        serving: ServingContext,
        is_leader: Callable[[], bool],
        *,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._settings = settings
        self._serving = serving
        self._is_leader = is_leader
        self._now = now
        self._clock = clock
        self._secret = Mirror(
            api, SECRETS, namespace=settings.namespace, fields=f"metadata.name={settings.secret_name}"
        )
        self._webhooks = Mirror(api, WEBHOOKS, fields=f"metadata.name={settings.configuration}")
        self._stored: Stored | None = None
        self._published: bytes = b""
        self._published_at: float | None = None
        self._was_trusted = False

    @property
    def expires_at(self) -> float:
        """When the certificate that is shown ends, in seconds since the epoch; 0 without one."""
        if self._serving.loaded is None:
            return 0.0
        return x509.load_pem_x509_certificate(self._serving.loaded.certificate).not_valid_after_utc.timestamp()

    def missing(self) -> str:
        """Why this replica can't serve yet; empty when it can."""
        return "" if self._serving.loaded is not None else "no serving certificate yet"

    def untrusted(self) -> str:
        """Why the API server would not believe this replica yet; empty for good once it would. What happens later the
        leader mends in a moment, and a service without endpoints would mend nothing."""
        return "" if self._was_trusted else "the webhook configuration does not trust its certificate yet"

    async def run(self) -> None:
        """Until cancelled. Nothing that the API server does ends it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._secret.run(), name="mirror of the webhook's Secret")
            group.create_task(self._webhooks.run(), name="mirror of the webhook configuration")
            await self._secret.synced()
            await self._webhooks.synced()
            while True:
                seen = self._secret.version, self._webhooks.version
                try:
                    await self.look()
                    self._was_trusted |= self._stored is not None and not self._is_unpublished()
                    pause_s = FIRST_LOOKS_S if self.missing() or self._is_unpublished() else LOOK_AGAIN_S
                except KubeConflict:
                    pause_s = RETRY_S  # another replica was first, or our copy is behind: look again
                except KubeError as error:
                    LOG.warning("the webhook's certificates could not be written: %s", error)
                    pause_s = RETRY_S
                await self._news(seen, pause_s)

    async def look(self) -> None:
        """One round: load what is there; as the leader also do what is due, and publish. Raises KubeError."""
        self._load(read_secret(self._secret.get(self._settings.secret_name, self._settings.namespace) or {}))
        if not self._is_leader():
            return
        now = self._now()
        rules = self._settings.certificates
        step = next_step(self._stored, self._settings.dns_names, now, self._published_for_s(), rules)
        secret = self._secret.get(self._settings.secret_name, self._settings.namespace)
        if step != "keep":
            LOG.info("the webhook's certificates: %s", step)
            await self._write(secret, take_step(step, self._stored, self._settings.dns_names, now, rules))
        elif self._stored is not None and read_secret(secret or {}) is None:
            LOG.warning("the webhook's Secret was lost or damaged; it is written again")
            await self._write(secret, self._stored)
        if self._is_leader():  # writing took its time
            await self._publish()

    def _load(self, found: Stored | None) -> None:
        """What a Secret that was taken away held stays in use: who trusts it does so still."""
        if found is None:
            return
        try:
            if self._serving.load(found.serving):
                LOG.info("the webhook serves with a certificate that ends %s", time.ctime(self.expires_at))
        except ssl.SSLError as error:
            LOG.warning("the webhook's certificate can't be used, so the one before stays: %s", error)
            return
        self._stored = found

    async def _write(self, secret: Object | None, stored: Stored) -> None:
        """As a whole and only if nobody else wrote: KubeConflict."""
        settings = self._settings
        data = secret_data(stored)
        if secret is None:
            body: Object = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": settings.secret_name,
                    "namespace": settings.namespace,
                    "labels": {MANAGED_BY: MANAGED_BY_US},
                },
                "type": "Opaque",
                "data": data,
            }
            await self._api.create(SECRETS, body, namespace=settings.namespace)
        else:
            await self._api.replace(SECRETS, {**secret, "data": data}, namespace=settings.namespace)
        self._load(stored)

    def _published_for_s(self) -> float:
        """How long the configuration that we see has held the stored bundle."""
        wanted = b"" if self._stored is None else self._stored.bundle_pem
        bundles = [_bundle(webhook) for webhook in self._our_webhooks()]
        if not wanted or not bundles or any(bundle != wanted for bundle in bundles):
            self._published_at = None
            return 0.0
        if self._published_at is None or self._published != wanted:
            self._published, self._published_at = wanted, self._clock()
        return self._clock() - self._published_at

    def _is_unpublished(self) -> bool:
        """Whether a webhook that we see trusts something else than what is stored."""
        stored = self._stored
        return stored is not None and any(_bundle(webhook) != stored.bundle_pem for webhook in self._our_webhooks())

    async def _publish(self) -> None:
        """Put the bundle into every webhook of the configuration that has another."""
        if self._stored is None:
            return
        wanted = base64.b64encode(self._stored.bundle_pem).decode()
        operations: list[Object] = []
        for index, webhook in enumerate(self._our_webhooks()):
            if _bundle(webhook) != self._stored.bundle_pem:
                operations += [
                    {"op": "test", "path": f"/webhooks/{index}/name", "value": webhook["name"]},
                    {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": wanted},
                ]
        if operations:
            with contextlib.suppress(KubeNotFound):  # taken away meanwhile: the mirror will say so
                await self._api.patch(WEBHOOKS, self._settings.configuration, operations)
                LOG.info("the webhook configuration trusts the present certificates")

    def _our_webhooks(self) -> list[Object]:
        configuration = self._webhooks.get(self._settings.configuration) or {}
        return configuration.get("webhooks") or []

    async def _news(self, seen: tuple[int, int], pause_s: float) -> None:
        """Return when an object changed since, or after the pause; soon while an authority waits to serve."""
        if self._stored is not None and self._stored.next_ca is not None:
            pause_s = min(pause_s, max(self._settings.certificates.settle_s / 4, 0.05))
        waits = [
            asyncio.ensure_future(self._secret.changed(seen[0])),
            asyncio.ensure_future(self._webhooks.changed(seen[1])),
        ]
        try:
            await asyncio.wait(waits, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _bundle(webhook: Object) -> bytes:
    try:
        return base64.b64decode(webhook["clientConfig"].get("caBundle") or "")
    except ValueError:
        return b""
