"""What Prometheus is told to look for: the configuration in docs/operations.md, and what the Prometheus Operator
makes of the chart's PodMonitor and ServiceMonitor.

Both are for a Prometheus in a pod; `from_outside` lets one that is none reach the API server and the kubelets.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

Job = dict[str, Any]
OPERATIONS: Final = Path(__file__).parents[2] / "docs/operations.md"


def documented_jobs() -> list[Job]:
    """Of the one block in docs/operations.md that has scrape_configs."""
    blocks = re.findall(r"^```yaml\n(scrape_configs:\n.*?)^```", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = blocks
    jobs: list[Job] = yaml.safe_load(block)["scrape_configs"]
    return jobs


def monitors_jobs(objects: Iterable[Mapping[str, Any]]) -> list[Job]:
    """Of rendered monitors, as the Prometheus Operator translates the fields that the chart's have (its promcfg.go)."""
    jobs = []
    for each in objects:
        if each["kind"] == "PodMonitor":
            jobs += [_pod_job(each, endpoint) for endpoint in each["spec"]["podMetricsEndpoints"]]
        elif each["kind"] == "ServiceMonitor":
            jobs += [_service_job(each, endpoint) for endpoint in each["spec"]["endpoints"]]
    return jobs


def _pod_job(monitor: Mapping[str, Any], endpoint: Mapping[str, Any]) -> Job:
    meta = "__meta_kubernetes_pod"
    found = [
        *_selected(f"{meta}_label", monitor["spec"]["selector"]),
        {"source_labels": [f"{meta}_container_port_name"], "regex": endpoint["port"], "action": "keep"},
        _copied(f"{meta}_name", "pod"),
    ]
    return _job(monitor, "podMonitor", "pod", endpoint, found, f"{meta}_label")


def _service_job(monitor: Mapping[str, Any], endpoint: Mapping[str, Any]) -> Job:
    meta = "__meta_kubernetes_service"
    found = [
        *_selected(f"{meta}_label", monitor["spec"]["selector"]),
        {
            "source_labels": ["__meta_kubernetes_endpointslice_port_name"],
            "regex": endpoint["port"],
            "action": "keep",
        },
        _copied(f"{meta}_name", "service"),
        _copied("__meta_kubernetes_pod_name", "pod"),
    ]
    return _job(monitor, "serviceMonitor", "endpointslice", endpoint, found, f"{meta}_label")


def _job(
    monitor: Mapping[str, Any],
    kind: str,
    role: str,
    endpoint: Mapping[str, Any],
    found: list[dict[str, Any]],
    labels: str,
) -> Job:
    meta, spec = monitor["metadata"], monitor["spec"]
    known = {"port", "interval", "relabelings"}, {"jobLabel", "selector", "podMetricsEndpoints", "endpoints"}
    assert endpoint.keys() <= known[0], "teach this function what the Operator makes of the new field"
    assert spec.keys() <= known[1], "teach this function what the Operator makes of the new field"
    phase = {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)", "action": "drop"}
    job_label = {
        "source_labels": [f"{labels}_{_escaped(spec['jobLabel'])}"],
        "regex": "(.+)",
        "target_label": "job",
        "replacement": "${1}",
    }
    return {
        "job_name": f"{kind}/{meta['namespace']}/{meta['name']}/0",
        "kubernetes_sd_configs": [{"role": role, "namespaces": {"names": [meta["namespace"]]}}],
        "relabel_configs": [
            phase,
            *found,
            _copied("__meta_kubernetes_namespace", "namespace"),
            _copied("__meta_kubernetes_pod_container_name", "container"),
            job_label,
            {"target_label": "endpoint", "replacement": endpoint["port"]},
            *({_snake(key): value for key, value in each.items()} for each in endpoint["relabelings"]),
        ],
    }


def _selected(prefix: str, selector: Mapping[str, Any]) -> list[dict[str, Any]]:
    assert selector.keys() == {"matchLabels"}
    return [
        {"source_labels": [f"{prefix}_{_escaped(label)}"], "regex": re.escape(value), "action": "keep"}
        for label, value in selector["matchLabels"].items()
    ]


def _copied(source: str, target: str) -> dict[str, Any]:
    return {"source_labels": [source], "target_label": target}


def _escaped(label: str) -> str:
    """As Prometheus writes it in `__meta_…` labels."""
    return re.sub(r"\W", "_", label)


def _snake(key: str) -> str:
    return re.sub(r"(?=[A-Z])", "_", key).lower()


def from_outside(jobs: Iterable[Job], *, kubeconfig: Path, token: Path) -> list[Job]:
    """For a Prometheus that is no pod: where the API server is, and where its token lies. Nothing else is changed."""
    changed = copy.deepcopy(list(jobs))
    for job in changed:
        for discovery in job["kubernetes_sd_configs"]:
            discovery["kubeconfig_file"] = str(kubeconfig)
        if "authorization" in job:
            job["authorization"]["credentials_file"] = str(token)
    return changed
