"""Grafana's own format of a dashboard, made from a few lines for each panel, so that all look and filter alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

SCHEMA_VERSION: Final = 41
"""Of Grafana 12; Grafana 10 and 11 read it too."""
WIDTH: Final = 24
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
Object = dict[str, Any]
Kind = Literal["stat", "timeseries", "table"]


@dataclass(frozen=True)
class Panel:
    """`queries`: expression and legend. `unit`: one of Grafana's. `width`: of 24. `stacked`: areas upon each other.
    `red_above`: from this value on a stat is red."""

    title: str
    queries: Sequence[tuple[str, str]]
    text: str
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    stacked: bool = False
    red_above: float | None = None


@dataclass(frozen=True)
class Section:
    """A heading, and what is below it."""

    title: str
    panels: Sequence[Panel]


def stat(title: str, query: str, text: str, unit: str = "short", red_above: float | None = None) -> Panel:
    """One number."""
    return Panel(title, [(query, "")], text, unit, kind="stat", width=4, red_above=red_above)


def dashboard(name: str, title: str, sections: Sequence[Section], *variables: Object) -> Object:
    """All of it, as Grafana exports it. `variables`: what a person chooses from, above the panels."""
    panels: list[Object] = []
    y = 0
    for section in sections:
        panels.append(_row(section.title, len(panels) + 1, y))
        x, y, tallest = 0, y + 1, 0
        for panel in section.panels:
            height = 4 if panel.kind == "stat" else 8
            if x + panel.width > WIDTH or (tallest and height != tallest):
                x, y, tallest = 0, y + tallest, 0
            place = {"x": x, "y": y, "w": panel.width, "h": height}
            panels.append(_panel(panel, len(panels) + 1, place))
            x, tallest = x + panel.width, height
        y += tallest
    return {
        "uid": f"cacheagent-{name}",
        "title": title,
        "tags": ["cacheagent"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "templating": {"list": [_source_variable(), *variables]},
        "annotations": {"list": []},
        "links": [
            {"type": "dashboards", "title": "cacheagent", "tags": ["cacheagent"], "keepTime": True, "includeVars": True}
        ],
        "panels": panels,
    }


def _source_variable() -> Object:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}


def variable(name: str, label: str, query: str) -> Object:
    """Any of what a query finds, several or all at once."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _row(title: str, number: int, y: int) -> Object:
    place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(panel: Panel, number: int, place: Object) -> Object:
    custom: Object = {}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        custom = {
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": stacking,
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [_target(panel, index, query, legend) for index, (query, legend) in enumerate(panel.queries)],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                **({"min": 0} if panel.kind == "timeseries" else {}),
                **({"custom": custom} if custom else {}),
                "thresholds": {"mode": "absolute", "steps": _steps(panel)},
            },
            "overrides": [],
        },
        "options": _options(panel),
    }


def _target(panel: Panel, index: int, query: str, legend: str) -> Object:
    once = panel.kind != "timeseries"
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "expr": query,
        "legendFormat": legend or "__auto",
        "instant": once,
        "range": not once,
        **({"format": "table"} if panel.kind == "table" else {}),
    }


def _steps(panel: Panel) -> list[Object]:
    steps: list[Object] = [{"color": "green", "value": None}]
    return steps if panel.red_above is None else [*steps, {"color": "red", "value": panel.red_above}]


def _options(panel: Panel) -> Object:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "table":
        return {"showHeader": True}
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "none", "textMode": "value"}
