"""The controller's configuration: what it means, what is refused, and that every key is documented."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from cacheagent.config import TracingSettings
from cacheagent.errors import ConfigError
from cacheagent.kube.controller_config import (
    ColdSettings,
    ControllerConfig,
    WebhookNames,
    load_controller_config,
    parse_controller_config,
)
from cacheagent.kube.run_controller import own_namespace
from cacheagent.kube.uris import UriRule
from cacheagent.kube.webhook.settings import KNOWN_SIDECARS

FILE = Path("/etc/cacheagent/controller.yaml")
DOCUMENT = Path(__file__).parents[2] / "docs/controller.md"


def test_everything_has_a_default() -> None:
    """An empty file is a configuration."""
    assert parse_controller_config("", FILE) == ControllerConfig()
    assert ControllerConfig().webhook_settings.sidecars == KNOWN_SIDECARS


def test_all_of_it_reaches_whom_it_is_for() -> None:
    """The plan, the webhook and its certificates get what they need, in plain numbers."""
    config = parse_controller_config(
        """
        image: registry.example/cacheagent:1
        image_pull_policy: Always
        host_root: /mnt/nvme/cache
        webhook: {service: hook, secret: hook-tls, configuration: z-hook, listen: ''}
        on_demand: [{prefix: s3://team-a, namespaces: [a], credentials: team-a}]
        file_roots: [/srv/models]
        uri_idle: 2h
        sidecars: [mine]
        cold: {enabled: true, deadline: 10m}
        """,
        FILE,
    )
    plan = config.plan_settings
    assert (plan.host_root, plan.cold, plan.cold_deadline_s, plan.uri_idle_s) == (
        "/mnt/nvme/cache",
        True,
        600.0,
        7200.0,
    )
    assert plan.allow_list.rules == (UriRule(prefix="s3://team-a", namespaces=("a",), credentials="team-a"),)
    assert plan.allow_list.file_roots == ("/srv/models",)
    assert config.webhook_settings.image == "registry.example/cacheagent:1"
    assert config.webhook_settings.sidecars == ("mine",)
    keeper = config.keeper_settings("system")
    assert (keeper.namespace, keeper.service, keeper.secret_name, keeper.configuration) == (
        "system",
        "hook",
        "hook-tls",
        "z-hook",
    )
    assert not config.webhook.listen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imagee: x", "line 1.*imagee"),
        ("a: 1\nimage: [x]", "controller.yaml"),
        ("host_root: relative", "absolute path"),
        ("writes_per_second: 0", "1 or more"),
        ("cold: {deadline: soon}", "cold.deadline.*duration"),
        ("on_demand: [{prefix: nowhere}]", "prefix"),
        ("image: a\nimage: b", "twice"),
        ("- a list", "top level"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(text: str, said: str) -> None:
    """File, line or key, and what was expected."""
    with pytest.raises(ConfigError) as caught:
        parse_controller_config(text, FILE)
    assert re.search(said, caught.value.message, re.DOTALL), caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One sentence, and what to do."""
    with pytest.raises(ConfigError, match=r"nothing\.yaml can't be read"):
        load_controller_config(tmp_path / "nothing.yaml")


def test_every_key_is_documented_and_no_other() -> None:
    """The table of settings and the values say the same."""
    documented = set(
        re.findall(r"^\| `([a-z_.]+)(?:\[\])?`", DOCUMENT.read_text().split("## Settings")[1], re.MULTILINE)
    )
    documented -= {"logs.format"}
    nested: dict[str, type[msgspec.Struct]] = {
        "webhook": WebhookNames,
        "cold": ColdSettings,
        "tracing": TracingSettings,
    }
    keys = {field.encode_name for field in msgspec.structs.fields(ControllerConfig)} - {*nested, "logs"}
    keys |= {f"{key}.{field.encode_name}" for key, value in nested.items() for field in msgspec.structs.fields(value)}
    assert documented == keys


def test_the_namespace_is_the_pod_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment, else from the service account; outside of a pod it must be given."""
    monkeypatch.setenv("POD_NAMESPACE", "here")
    assert own_namespace(tmp_path) == "here"
    monkeypatch.delenv("POD_NAMESPACE")
    with pytest.raises(ConfigError, match="namespace is not known"):
        own_namespace(tmp_path)
    (tmp_path / "namespace").write_text("there\n")
    assert own_namespace(tmp_path) == "there"
