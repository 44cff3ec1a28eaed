"""What the chart's dashboards and rules ask Prometheus."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.fakes.prometheus import Prometheus

CHART: Final = Path(__file__).parents[2] / "daemonset/chart"
RULES: Final = CHART / "files/alerts.yaml"
NAMESPACE: Final = "cacheagent-system"


@dataclass(frozen=True)
class Target:
    """One expression of a panel, with all variables set."""

    dashboard: str
    panel: str
    expression: str


def targets(models: str) -> list[Target]:
    """Of all dashboards. `models`: what Grafana's variable `$model` is, a regular expression."""
    variables = {
        "$__rate_interval": "30s",
        "$__range": "5m",
        "$namespace": NAMESPACE,
        "$node": ".*",
        "$model": models,
    }
    found = []
    for file in sorted((CHART / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"]
                for name, value in variables.items():
                    expression = expression.replace(name, value)
                found.append(Target(file.stem, panel["title"], expression))
    return found


def rules() -> list[dict[str, Any]]:
    """Alerts and recording rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def hasty_rules(seconds: int) -> str:
    """The rules file, with alerts that wait only so long before they fire; nothing else is changed."""
    content = yaml.safe_load(RULES.read_text())
    for group in content["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["for"] = f"{seconds}s"
    return yaml.safe_dump(content)


def has_data(prometheus: Prometheus, expression: str) -> bool:
    """A number at least; what can't be computed (0 by 0) is none. Raises PrometheusRefused."""
    return any(not math.isnan(value) for _, value in prometheus.query(expression))
