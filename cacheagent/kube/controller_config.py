"""What can be set for a controller, as frozen values read strictly from its file: `docs/controller.md` says the
same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cacheagent.config import Address, LogSettings, TracingSettings
from cacheagent.config_file import compose, convert
from cacheagent.errors import ConfigError
from cacheagent.kube.plan import PlanSettings
from cacheagent.kube.uris import AllowList, UriRule
from cacheagent.kube.webhook.keeper import KeeperSettings
from cacheagent.kube.webhook.settings import KNOWN_SIDECARS, WebhookSettings
from cacheagent.model import Value
from cacheagent.quantity import Duration


class WebhookNames(Value):
    """Where the webhook listens and what belongs to it.

    `listen` (default 0.0.0.0:9443, empty for no webhook): address of the pod. `service`, `secret`, `configuration`:
    names of the Service, of the Secret with the certificates (made here), and of the MutatingWebhookConfiguration.
    """

    listen: Address = Address("0.0.0.0:9443")
    service: str = "cacheagent-webhook"
    secret: str = "cacheagent-webhook"  # noqa: S105 - an object's name
    configuration: str = "z-cacheagent"


class ColdSettings(Value):
    """The taint `cacheagent.io/cold`. `enabled` (default false): take it off nodes that have all `required` models,
    and put it back on nodes whose disk came back empty. `deadline` (default 30m): take it off after so long whatever
    is missing.
    """

    enabled: bool = False
    deadline: Duration = Duration(1800)


class ControllerConfig(Value):
    """A controller and its webhook.

    `image` (default cacheagent), `image_pull_policy` (default: the cluster's): of the container that waits (`wait:
    init`).

    `host_root` (default /var/lib/cacheagent): the cache directory on the nodes, as in the agents' volume.

    `lease` (default cacheagent-controller): name of the Lease by which replicas choose who leads.

    `listen` (default 0.0.0.0:9472, empty for none): address of `/healthz`, `/readyz` and `/metrics`, without
    authentication.

    `on_demand` (default none): rules for URIs that pods may name; see `uris.UriRule`. `file_roots` (default none):
    directories that `file://` URIs must lie below as well. `cluster_networks` (default none): pod and service networks,
    where nothing is fetched from. `uri_idle` (default 24h): a model that a URI made is removed when unused for so long.

    `peers` (default true): whether agents are told of each other, so that they exchange what they fetch.

    `sidecars` (default: the known ones): containers that get no weights unless a pod names them.

    `tracing`: as in the agent's configuration.

    `writes_per_second` (default 50): the most that is written to the API server, bursts of a second aside. Chosen.
    """

    image: str = "cacheagent"
    image_pull_policy: str = ""
    host_root: str = "/var/lib/cacheagent"
    lease: str = "cacheagent-controller"
    listen: Address = Address("0.0.0.0:9472")
    webhook: WebhookNames = WebhookNames()
    on_demand: tuple[UriRule, ...] = ()
    file_roots: tuple[str, ...] = ()
    cluster_networks: tuple[str, ...] = ()
    uri_idle: Duration = Duration(86400)
    sidecars: tuple[str, ...] = KNOWN_SIDECARS
    cold: ColdSettings = ColdSettings()
    peers: bool = True
    writes_per_second: int = 50
    tracing: TracingSettings = TracingSettings()
    logs: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        if not self.host_root.startswith("/") or self.host_root.endswith("/"):
            raise ValueError(
                f"expected host_root to be an absolute path without a slash at its end, got {self.host_root!r}"
            )
        if self.writes_per_second < 1:
            raise ValueError(f"expected writes_per_second to be 1 or more, got {self.writes_per_second}")

    @property
    def allow_list(self) -> AllowList:
        """What pods may ask for by URI."""
        return AllowList(rules=self.on_demand, file_roots=self.file_roots, cluster_networks=self.cluster_networks)

    @property
    def plan_settings(self) -> PlanSettings:
        """What of it decides."""
        return PlanSettings(
            host_root=self.host_root,
            allow_list=self.allow_list,
            cold=self.cold.enabled,
            cold_deadline_s=float(self.cold.deadline),
            uri_idle_s=float(self.uri_idle),
            peers=self.peers,
        )

    @property
    def webhook_settings(self) -> WebhookSettings:
        """What of it the webhook needs."""
        return WebhookSettings(
            image=self.image,
            image_pull_policy=self.image_pull_policy,
            sidecars=self.sidecars,
            allow_list=self.allow_list,
            traced=bool(self.tracing.endpoint),
        )

    def keeper_settings(self, namespace: str) -> KeeperSettings:
        """What the webhook's certificates are for. `namespace`: of Secret and Service."""
        return KeeperSettings(
            namespace=namespace,
            secret_name=self.webhook.secret,
            service=self.webhook.service,
            configuration=self.webhook.configuration,
        )


def load_controller_config(path: Path) -> ControllerConfig:
    """Read and judge the file. Raises ConfigError naming file, line and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}", hint="give the file with --config") from error
    return parse_controller_config(text, path)


def parse_controller_config(text: str, path: Path) -> ControllerConfig:
    """The configuration in `text`; `path` is where it came from. An empty file is all defaults."""
    written: dict[str, Any]
    tree, written = compose(text if text.strip() else "{}", path, such_as="image and webhook")
    return convert(written, tree, path, ControllerConfig)
