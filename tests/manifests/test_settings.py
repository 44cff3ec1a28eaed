"""What the chart writes for our programs is what they read, and names that two sides use are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import botocore.session
import msgspec
import pytest
import yaml

import cacheagent
from cacheagent.config import AgentConfig
from cacheagent.config_file import parse_config
from cacheagent.kube import names
from cacheagent.kube.controller_config import ControllerConfig, parse_controller_config
from cacheagent.source.posix import NFS_MOUNTS, parse_mounts
from cacheagent.source.tokens import CREDENTIALS_DIR
from csi.registration import driver_socket
from tests.conftest import missing
from tests.manifests.chart import CHART, EVERYTHING, Manifests, container, mounts, parse, render


def agent_file(manifests: Manifests) -> str:
    text: str = manifests.get("ConfigMap", "cacheagent-agent")["data"]["agent.yaml"]
    return text


def controller_config(manifests: Manifests) -> ControllerConfig:
    text = manifests.get("ConfigMap", "cacheagent-controller")["data"]["controller.yaml"]
    return parse_controller_config(text, Path("controller.yaml"))


def environment(pod: Any, name: str) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container(pod, name).get("env", [])}


def test_agent_reads_its_configuration(any_set: Manifests) -> None:
    """The strict reader of the agent accepts the file; places are where the pod mounts them."""
    config = parse_config(agent_file(any_set), Path("/etc/cacheagent/agent.yaml"))
    paths = mounts(any_set.node_pod, "agent")
    assert str(config.root) in paths
    assert str(config.socket.parent) in paths
    ports = {port["name"]: port["containerPort"] for port in container(any_set.node_pod, "agent")["ports"]}
    assert (config.listen.host, config.listen.port) == ("0.0.0.0", ports.pop("metrics"))
    listening = {"peers": config.peers.listen.port} if config.peers.listen else {}
    assert ports == listening


def test_starts_are_traced_where_a_receiver_is_named(any_set: Manifests, everything: Manifests) -> None:
    """By agents and controllers alike, and then the webhook writes on pods; else neither file speaks of it."""
    endpoint = "http://otel-collector.observability:4318" if any_set is everything else ""
    controller = controller_config(any_set)
    assert parse_config(agent_file(any_set), Path("agent.yaml")).tracing.endpoint == endpoint
    assert (controller.tracing.endpoint, controller.webhook_settings.traced) == (endpoint, bool(endpoint))
    assert ("tracing" in agent_file(any_set)) == bool(endpoint)


def test_agents_settings_arrive(everything: Manifests) -> None:
    """Those of the values are in the file with their meaning."""
    config = parse_config(agent_file(everything), Path("/etc/cacheagent/agent.yaml"))
    assert config.store.floor_bytes == 50 << 30
    assert config.transfer.workers == 4
    assert (config.peers.listen, config.peers.egress_cap_bytes_per_s) == ("0.0.0.0:7500", 625_000_000)
    assert config.peers.origin_budget_bytes_per_s == 1_000_000_000
    assert config.peers.tls
    assert float(config.page_cache.keep_available) == 0.3
    assert [str(root) for root in config.file_roots] == [tree["path"] for tree in EVERYTHING["sources"]["hostPaths"]]
    assert [str(root) for root in config.on_demand_roots] == EVERYTHING["onDemand"]["fileRoots"]
    assert list(config.refused_networks) == EVERYTHING["onDemand"]["clusterNetworks"]
    assert (config.logs.format, config.logs.level) == ("human", "debug")


def test_every_setting_of_the_agent_has_its_value() -> None:
    """Those of the chart itself apart. A new section of the configuration must not be forgotten here."""
    sections = {field.encode_name: field.type for field in msgspec.structs.fields(AgentConfig)}
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["agent"]["properties"]["config"]
    known = schema["properties"]
    of_the_chart = {"root", "socket", "listen", "file_roots", "on_demand_roots", "refused_networks", "models", "peers"}
    assert sections.keys() - known.keys() == of_the_chart | {"tracing"}
    for name, section in known.items():
        assert {field.encode_name for field in msgspec.structs.fields(sections[name])} == section["properties"].keys()


def test_every_setting_of_the_controller_has_its_value() -> None:
    """As above."""
    fields = {field.encode_name for field in msgspec.structs.fields(ControllerConfig)}
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["controller"]["properties"]["config"]
    text = parse(render()).get("ConfigMap", "cacheagent-controller")["data"]["controller.yaml"]
    assert fields == schema["properties"].keys() | yaml.safe_load(text).keys() | {"tracing"}


def test_address_of_version_six() -> None:
    """On a cluster without IPv4 the probes must find the port."""
    rendered = parse(render({"agent": {"listenAddress": "[::]"}, "controller": {"listenAddress": "[::]"}}))
    assert parse_config(agent_file(rendered), Path("agent.yaml")).listen.host == "::"
    assert controller_config(rendered).webhook.listen.host == "::"


def test_controller_reads_its_configuration(any_set: Manifests) -> None:
    """Its names are those of the objects that the chart makes, and of those that its role speaks of."""
    config = controller_config(any_set)
    webhook = any_set.get("MutatingWebhookConfiguration", config.webhook.configuration)["webhooks"][0]
    assert webhook["clientConfig"]["service"]["name"] == config.webhook.service
    assert any_set.get("Service", config.webhook.service)["spec"]["ports"] == [
        {"name": "webhook", "port": webhook["clientConfig"]["service"]["port"], "targetPort": "webhook"}
    ]
    named = {
        resource: rule["resourceNames"]
        for rule in any_set.get("Role", "cacheagent-controller")["rules"]
        if "resourceNames" in rule
        for resource in rule["resources"]
    }
    assert named == {"secrets": [config.webhook.secret], "leases": [config.lease]}
    ports = {port["name"]: port["containerPort"] for port in container(any_set.controller_pod, "controller")["ports"]}
    assert ports == {"webhook": config.webhook.listen.port, "metrics": config.listen.port}


def test_controller_and_pods_agree_about_the_nodes(any_set: Manifests) -> None:
    """Local volumes point at the directory that the agents fill; the waiting container is our own image."""
    config = controller_config(any_set)
    assert config.host_root == str(parse_config(agent_file(any_set), Path("agent.yaml")).root)
    assert config.image == container(any_set.controller_pod, "controller")["image"]
    assert config.image_pull_policy == container(any_set.controller_pod, "controller")["imagePullPolicy"]


def test_rules_for_uris_arrive(everything: Manifests) -> None:
    """Written like the rest of the values, read in the configuration's own spelling."""
    (rule,) = controller_config(everything).on_demand
    assert (rule.prefix, rule.namespaces, rule.credentials) == ("s3://models/team-a", ("team-a",), "team-a")
    rendered = parse(
        render(
            {
                "onDemand": {
                    "rules": [
                        {
                            "prefix": "s3://models",
                            "namespaces": ["*"],
                            "endpoint": "https://minio.example:9000",
                            "caBundle": "/etc/cacheagent/ca/corp.crt",
                            "pathStyle": False,
                        }
                    ],
                    "idle": "2h",
                },
                "cold": {"enabled": True, "deadline": "45m"},
            }
        )
    )
    config = controller_config(rendered)
    assert (config.on_demand[0].ca_bundle, config.on_demand[0].path_style) == ("/etc/cacheagent/ca/corp.crt", False)
    assert (float(config.uri_idle), config.cold.enabled, float(config.cold.deadline)) == (7200, True, 2700)


def test_controller_knows_the_agents_pods(any_set: Manifests) -> None:
    """By the labels that the code looks for; a cache node is where such a pod runs."""
    (workload,) = any_set.all("DaemonSet")
    assert names.AGENT_COMPONENT.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
    (controller,) = any_set.all("Deployment")
    assert not names.AGENT_COMPONENT.items() <= controller["spec"]["template"]["metadata"]["labels"].items()


def test_names_are_those_of_the_code(any_set: Manifests) -> None:
    assert any_set.get("CSIDriver", names.DRIVER)
    assert any_set.get("MutatingWebhookConfiguration", "z-cacheagent")["webhooks"][0]["matchConditions"][0][
        "expression"
    ].endswith(f'"{names.MODEL}" in object.metadata.annotations')
    tolerated = {toleration.get("key", "") for toleration in any_set.node_pod["tolerations"]}
    assert {names.COLD_TAINT} <= tolerated or tolerated == {""}
    (kubelet,) = [m["mountPath"] for m in container(any_set.node_pod, "csi")["volumeMounts"] if m["name"] == "kubelet"]
    assert str(driver_socket(Path(kubelet))) in container(any_set.node_pod, "csi")["startupProbe"]["exec"]["command"]


def test_driver_accepts_its_arguments(any_set: Manifests) -> None:
    """The real parser, with what the chart gives it."""
    from csi.__main__ import _parser

    arguments = container(any_set.node_pod, "csi")["args"]
    options = _parser().parse_args([argument.replace("$(NODE_NAME)", "n1") for argument in arguments])
    assert options.node == "n1"
    assert str(options.agent_socket) == environment(any_set.node_pod, "agent")["CACHEAGENT_SOCKET"]


@pytest.mark.parametrize(
    ("workload", "name", "rest"),
    [
        ("node", "agent", ["--config", "/etc/cacheagent/agent.yaml", "--node", "$(NODE_NAME)"]),
        (
            "controller",
            "controller",
            ["--config", "/etc/cacheagent/controller.yaml", "--namespace", "$(POD_NAMESPACE)"],
        ),
    ],
)  # fmt: skip
def test_commands(any_set: Manifests, workload: str, name: str, rest: list[str]) -> None:
    """The image's entry point is our command; variables in arguments are those of the container."""
    pod = any_set.pod(f"cacheagent-{workload}")
    found = container(pod, name)["args"]
    assert found[: len(rest) + 1] == [name, *rest]
    assert found[len(rest) + 1 :] in ([], ["--peer-host", "$(POD_IP)"])
    assert {each[2:-1] for each in found if each.startswith("$(")} <= environment(pod, name).keys()
    assert rest[1].rpartition("/")[0] in mounts(pod, name)


def test_exports_are_found_where_they_are_mounted(everything: Manifests) -> None:
    """The agent's own reader of the variable, against the pod's mounts."""
    found = parse_mounts(environment(everything.node_pod, "agent")[NFS_MOUNTS])
    pod = mounts(everything.node_pod, "agent")
    for export in EVERYTHING["sources"]["nfs"]:
        place = found[f"{export['server']}:{export['path']}"]
        assert pod[place]["volume"]["nfs"]["path"] == export["path"]


def laid_out(manifests: Manifests, folder: Path, secrets: dict[str, dict[str, str]]) -> dict[str, str]:
    """The agent's files as the kubelet would lay them out below a folder; returns the environment, moved there."""
    pod = manifests.node_pod
    data = manifests.get("ConfigMap", "cacheagent-agent")["data"]
    (folder / "etc/cacheagent").mkdir(parents=True)
    for name, text in data.items():
        moved = text.replace("/etc/cacheagent/", f"{folder}/etc/cacheagent/").replace(
            "/usr/bin/python3", sys.executable
        )
        (folder / "etc/cacheagent" / name).write_text(moved)
    for source in mounts(pod, "agent")["/etc/cacheagent/credentials"]["volume"]["projected"]["sources"]:
        for item in source["secret"]["items"]:
            value = secrets.get(source["secret"]["name"], {}).get(item["key"])
            if value is not None:
                path = folder / "etc/cacheagent/credentials" / item["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(value)
    return {
        name: value.replace("/etc/cacheagent/", f"{folder}/etc/cacheagent/")
        for name, value in environment(pod, "agent").items()
    }


def test_aws_credentials_are_profiles(everything: Manifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore itself finds each secret's keys by the credential's name, and does not take one for another."""
    secrets = {
        "team-a-s3": {"AWS_ACCESS_KEY_ID": "AKIAA", "AWS_SECRET_ACCESS_KEY": 'a"\\ä\n', "AWS_SESSION_TOKEN": "t"},
        "minio": {"AWS_ACCESS_KEY_ID": "minio", "AWS_SECRET_ACCESS_KEY": "m"},
    }
    for name, value in laid_out(everything, tmp_path, secrets).items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    found = {}
    for profile in ("team-a", "minio"):
        session = botocore.session.Session(profile=profile)
        credentials = session.get_credentials()
        assert credentials is not None
        keys = credentials.get_frozen_credentials()
        found[profile] = (keys.access_key, keys.secret_key, keys.token, session.get_config_variable("region"))
    assert found == {
        "team-a": ("AKIAA", 'a"\\ä', "t", "eu-central-1"),
        "minio": ("minio", "m", None, None),
    }
    assert botocore.session.Session(profile="minio").get_scoped_config()["endpoint_url"] == "https://minio.example:9000"


def test_aws_secret_that_is_missing(everything: Manifests, tmp_path: Path) -> None:
    """Named in the error, which shows nothing of what others hold."""
    laid_out(everything, tmp_path, {})
    script, place = tmp_path / "etc/cacheagent/aws_keys.py", tmp_path / "etc/cacheagent/credentials/aws/team-a"
    answer = subprocess.run([sys.executable, "-IS", script, place], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert answer.stderr == "the secret of credential 'team-a' is missing or has no AWS_ACCESS_KEY_ID\n"


def test_tokens_are_files(everything: Manifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's own reader finds the Hub's token by the credential's name."""
    from cacheagent.source.tokens import find_token

    variables = laid_out(everything, tmp_path, {"hub-token": {"token": "hf_x\n"}})
    monkeypatch.setenv(CREDENTIALS_DIR, variables[CREDENTIALS_DIR])
    assert find_token("hub") == "hf_x"


def make_directory(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = (CHART / "files/make_directory.py").read_text()
    return subprocess.run(
        [sys.executable, "-IS", "-c", script, path, *arguments], capture_output=True, text=True, check=False
    )


def test_directory_is_closed_and_kept(tmp_path: Path) -> None:
    """Once or again; what is in it is not touched. (That it changes hands is shown on a cluster.)"""
    if os.geteuid():
        missing("root", "only root gives a directory away")
    (tmp_path / "inside").touch(mode=0o444)
    tmp_path.chmod(0o755)
    for _ in range(2):
        answer = make_directory(tmp_path, "0")
        assert (answer.returncode, answer.stderr) == (0, "")
        assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "inside").stat().st_mode & 0o777 == 0o444


def test_init_container_runs_that_script(default: Manifests) -> None:
    """The very text, with the directory and the agent's user."""
    found = container(default.node_pod, "make-directory")
    assert found["args"][0].strip() == (CHART / "files/make_directory.py").read_text().strip()
    user = container(default.node_pod, "agent")["securityContext"]["runAsUser"]
    assert found["args"][1:] == ["/var/lib/cacheagent", str(user)]


def test_chart_and_image_have_the_release(default: Manifests) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == cacheagent.__version__
    assert container(default.node_pod, "csi")["image"] == f"localhost/cacheagent:{cacheagent.__version__}"


def test_digest_goes_before_tag(everything: Manifests) -> None:
    assert container(everything.node_pod, "agent")["image"] == "localhost/cacheagent@sha256:" + "a" * 64


def test_change_of_configuration_restarts_its_readers_only(default: Manifests) -> None:
    """A checksum in the pod's annotations: a DaemonSet is rolled when the agent's file changes, not for another's."""
    changed = parse(render({"cold": {"enabled": True}}))
    for kind, same in (("DaemonSet", True), ("Deployment", False)):
        sums = [
            item["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            for manifests in (default, changed)
            for item in manifests.all(kind)
        ]
        assert (sums[0] == sums[1]) is same


def test_selectors_never_change(any_set: Manifests, default: Manifests) -> None:
    """They can't be changed by an upgrade, so no value may reach them."""
    for kind in ("DaemonSet", "Deployment"):
        assert any_set.all(kind)[0]["spec"]["selector"] == default.all(kind)[0]["spec"]["selector"]


def test_definitions_survive_an_uninstall(default: Manifests) -> None:
    """With all objects of their kinds; and they are templates, since helm never upgrades what is in crds/."""
    definitions = default.all("CustomResourceDefinition")
    assert {item["metadata"]["name"] for item in definitions} == {
        f"{kind}.{names.GROUP}" for kind in ("modelcaches", "modelcachenodes", "modelcachepeers", "modelwarmups")
    }
    for item in definitions:
        assert item["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not (CHART / "crds").exists()


def test_definitions_can_be_left_out() -> None:
    assert not parse(render({"crds": {"install": False}})).all("CustomResourceDefinition")


def test_another_release_name_renames_everything() -> None:
    """Roles without a namespace among it; only the driver's name is fixed."""
    rendered = parse(render(release="models"))
    assert {
        item["metadata"]["name"]
        for item in rendered.objects
        if "models-cacheagent" not in item["metadata"]["name"] and item["kind"] != "CustomResourceDefinition"
    } == {names.DRIVER}
    text = rendered.get("ConfigMap", "models-cacheagent-controller")["data"]["controller.yaml"]
    assert parse_controller_config(text, Path("controller.yaml")).webhook.secret == "models-cacheagent-webhook"


def test_gpu_nodes_or_all(default: Manifests) -> None:
    """Any of the labels is enough; `all` asks for none."""
    required = default.node_pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms = required["nodeSelectorTerms"]
    keys = [expression["key"] for term in terms for expression in term["matchExpressions"]]
    assert {"nvidia.com/gpu.present", "feature.node.kubernetes.io/pci-10de.present"} <= set(keys)
    assert len(terms) == len(keys), "expressions of one term would all have to match"
    assert "affinity" not in parse(render({"nodes": "all"})).node_pod


def test_rolling_restarts(default: Manifests) -> None:
    """The webhook never has fewer replicas than before, on nodes that differ; there is time to drain."""
    (deployment,) = default.all("Deployment")
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    from cacheagent.kube.webhook.server import DRAIN_S, LAST_REQUESTS_S

    assert default.controller_pod["terminationGracePeriodSeconds"] > DRAIN_S + LAST_REQUESTS_S + 10
    assert default.get("PodDisruptionBudget", "cacheagent-controller")["spec"]["maxUnavailable"] == 1
    assert "preferredDuringSchedulingIgnoredDuringExecution" in default.controller_pod["affinity"]["podAntiAffinity"]


def test_page_cache_is_not_limited(default: Manifests) -> None:
    """Pages that the agent warms are charged to it: a limit would throw them out again."""
    assert "limits" not in container(default.node_pod, "agent")["resources"]
    for name in ("agent", "csi"):
        assert container(default.node_pod, name)["resources"]["requests"].keys() == {"cpu", "memory"}


def test_monitors_find_their_pods(everything: Manifests) -> None:
    """Labels and port names are those of the pods and of the service."""
    (daemonset,) = everything.all("DaemonSet")
    monitor = everything.get("PodMonitor", "cacheagent-agent")["spec"]
    labels = daemonset["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["podMetricsEndpoints"][0]["port"] == "metrics"
    service = everything.get("Service", "cacheagent-controller")
    selector = everything.get("ServiceMonitor", "cacheagent-controller")["spec"]["selector"]["matchLabels"]
    assert selector.items() <= service["metadata"]["labels"].items()
    assert not selector.items() <= everything.get("Service", "cacheagent-webhook")["metadata"]["labels"].items()


def test_notes_say_how_to_remove_everything() -> None:
    """`helm uninstall` leaves data and definitions; the notes name both, and the release's own objects."""
    from tests.manifests.chart import find_helm

    command = [
        str(find_helm()),
        "install",
        "cacheagent",
        str(CHART),
        "--namespace",
        "n",
        "--dry-run=client",
        "--output",
        "json",
    ]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"KUBECONFIG": "/nonexistent"}
    )
    assert answer.returncode == 0, answer.stderr
    notes = json.loads(answer.stdout)["info"]["notes"]
    for needed in (
        "delete crd modelcaches",
        "rm -rf /var/lib/cacheagent",
        "secret/cacheagent-webhook",
        "cacheagent.io/injected=true",
    ):
        assert needed in notes
