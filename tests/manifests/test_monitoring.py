"""Dashboards, rules and monitors: well formed, documented, found by those who look for them, and about metrics that
exist."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cacheagent.kube.metrics import table as controller_table
from cacheagent.metrics import table as agent_table
from tests.fakes.prometheus import promtool
from tests.manifests.chart import CHART, ROOT, Manifests, Object, parse, render

RULES = CHART / "files/alerts.yaml"
OPERATIONS = ROOT / "docs/operations.md"
NAMES = ("fleet", "node", "model")


def dashboard(name: str) -> Object:
    content: Object = json.loads((CHART / f"dashboards/{name}.json").read_text())
    return content


def rules() -> list[Object]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[str]:
    """Of all panels and rules."""
    for name in NAMES:
        for panel in dashboard(name)["panels"]:
            yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (rule["expr"] for rule in rules())


def test_dashboards_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are what the script writes now."""
    monkeypatch.syspath_prepend(ROOT / "scripts")  # as Python does for a script
    texts = runpy.run_path(str(ROOT / "scripts/dashboards.py"))["texts"]()
    found = {path.name: path.read_text() for path in (CHART / "dashboards").iterdir()}
    assert found == texts, "run python scripts/dashboards.py"


@pytest.mark.parametrize("name", NAMES)
def test_dashboard_is_one_that_grafana_reads(name: str) -> None:
    """Panels of Grafana's own kinds, each with a number, a place of its own, a text, and the chosen data source."""
    content = dashboard(name)
    panels = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    assert {panel["type"] for panel in panels} <= {"row", "stat", "timeseries", "table"}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert target["instant"] != target["range"]
    source, *variables = content["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    used = set(re.findall(r"\$(\w+)", json.dumps([panel.get("targets") for panel in panels])))
    assert {variable["name"] for variable in variables} == used - {"__rate_interval", "__range"}


def test_expressions_speak_of_metrics_that_exist() -> None:
    """A metric that is renamed takes panels and alerts with it."""
    known = {"ALERTS", "up", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_GR_ENGINE_ACTIVE"}
    known |= {rule["record"] for rule in rules() if "record" in rule}
    for name, kind, *_ in [*agent_table(), *controller_table()]:
        known |= {name, *((f"{name}_{part}" for part in ("bucket", "count", "sum")) if kind == "histogram" else ())}
    texts = list(expressions())
    assert len(texts) > 90
    for text in texts:
        plain = re.sub(r'"[^"]*"', "", text)
        used = set(re.findall(r"\b(?:cacheagent[\w:]+|up|ALERTS|DCGM_\w+)\b", plain))
        assert used <= known, text
        assert used, text


def test_rules_are_good() -> None:
    """By promtool's own judgement, its lint included."""
    assert "SUCCESS: 22 rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_alerts_say_what_to_do() -> None:
    """Severity, a summary, a description of two sentences at least, and a runbook whose heading is there."""
    headings = {line[5:].lower() for line in OPERATIONS.read_text().splitlines() if line.startswith("#### ")}
    alerts = [rule for rule in rules() if "alert" in rule]
    assert {rule["alert"].lower() for rule in alerts} == headings
    for rule in alerts:
        annotations = rule["annotations"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert len(annotations["summary"]) < 130
        assert re.search(r"\S[.:;] \w", annotations["description"])
        assert annotations["description"].endswith(".")
        assert annotations["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_chart_brings_rules_and_dashboards(everything: Manifests, default: Manifests) -> None:
    """Behind values; as the files have them, but for where the runbook is; found by the labels that were asked for."""
    rule = everything.get("PrometheusRule", "cacheagent")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    wanted = RULES.read_text().replace("docs/operations.md#", "https://wiki.example/cacheagent#")
    assert rule["spec"] == yaml.safe_load(wanted)
    for name in NAMES:
        found = everything.get("ConfigMap", f"cacheagent-dashboard-{name}")
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert found["metadata"]["annotations"] == {"grafana_folder": "Models"}
        assert json.loads(found["data"][f"cacheagent-{name}.json"]) == dashboard(name)
    for kind in ("PrometheusRule", "PodMonitor", "ServiceMonitor"):
        assert not default.all(kind)
    assert not [item for item in default.all("ConfigMap") if "dashboard" in item["metadata"]["name"]]


def test_runbook_stays_a_path_by_default() -> None:
    """Whoever reads an alert then knows at least the document."""
    manifests = parse(render({"monitoring": {"rules": {"enabled": True}}}))
    (found,) = [item for item in manifests.objects if item["kind"] == "PrometheusRule"]
    assert found["spec"] == yaml.safe_load(RULES.read_text())


def test_monitors_give_the_labels_that_rules_want(everything: Manifests) -> None:
    """The job's name whatever the release is called, the component, and the node."""
    agents = everything.get("PodMonitor", "cacheagent-agent")["spec"]
    controllers = everything.get("ServiceMonitor", "cacheagent-controller")["spec"]
    service = everything.get("Service", "cacheagent-controller")["metadata"]["labels"]
    for spec, (endpoint,) in ((agents, agents["podMetricsEndpoints"]), (controllers, controllers["endpoints"])):
        assert spec["jobLabel"] == "app.kubernetes.io/name"
        made = {each["targetLabel"]: each["sourceLabels"] for each in endpoint["relabelings"]}
        assert made == {
            "node": ["__meta_kubernetes_pod_node_name"],
            "component": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"],
        }
    assert service["app.kubernetes.io/name"] == "cacheagent"
    assert everything.node_pod


def test_scrape_configuration_of_the_documentation(tmp_path: Path) -> None:
    """Prometheus takes it, with the rules (Debian's was built without Kubernetes, so but for that line); it gives the
    same labels as the monitors."""
    (text,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", OPERATIONS.read_text(), re.DOTALL)
    file = tmp_path / "prometheus.yml"
    static, found = re.subn(r"kubernetes_sd_configs: \[\{role: \w+\}\]", "static_configs: [{targets: [x]}]", text)
    assert found == 2
    static = static.replace("/var/run/secrets/kubernetes.io/serviceaccount/token", "token")
    (tmp_path / "token").write_text("there is none outside a pod")
    file.write_text(f"rule_files: [{RULES}]\n{static}")
    assert "SUCCESS" in promtool("check", "config", file)
    job, kubelet = yaml.safe_load(text)["scrape_configs"]
    assert (job["job_name"], kubelet["job_name"]) == ("cacheagent", "kubelet")
    targets = {each.get("target_label") for each in job["relabel_configs"]}
    assert {"node", "component", "namespace"} <= targets
