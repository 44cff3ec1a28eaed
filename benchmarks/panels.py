"""Draws the Grafana dashboards without Grafana: each panel's queries, answered by a real Prometheus that scraped real
agents and a real controller for two minutes, in the dashboard's own grid.

Usage: python -m benchmarks.panels [FOLDER]      (default docs/images; needs the Debian package prometheus)
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import textwrap
import time
from math import isfinite
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.fakes.monitored import GPUS, REPOSITORY, Scene, running_scene
from tests.fakes.prometheus import Prometheus

DASHBOARDS: Final = REPOSITORY / "daemonset/chart/dashboards"
IMAGES: Final = REPOSITORY / "docs/images"
NODES: Final = ("h100-a", "h100-b", "h100-c")
SECONDS: Final = 120.0
STEP_S: Final = 2.0
VARIABLES: Final = {
    "$__rate_interval": "10s",
    "$__range": f"{SECONDS:.0f}s",
    "$namespace": "cacheagent-system",
    "$node": ".*",
    "$model": "llama|slow",
}
LARGE: Final = {"bytes": "B", "Bps": "B/s"}
Object = dict[str, Any]


def live(scene: Scene, end: float) -> None:
    """Pods come and go, GPUs work and wait, until then."""
    dice, bound = random.Random(7), list[tuple[str, float]]()
    number = 0
    while time.time() < end:
        node = dice.choice(NODES)
        number += 1
        scene.mount(node, f"volume-{number}", dice.choice(["llama", "llama", "tree", "late"]))
        scene.bind(f"pod-{number}", node, time.time())
        bound.append((f"pod-{number}", time.time()))
        scene.load(node, [dice.choice([0, 70, 85, 97]) for _ in range(GPUS)])
        if len(bound) > 2:
            name, since = bound.pop(0)
            scene.start(name, since, time.time())
        time.sleep(dice.uniform(1, 4))


def draw(prometheus: Prometheus, dashboard: Object) -> Figure:
    """All panels where Grafana puts them."""
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure: Figure = plt.figure(figsize=(18, rows * 0.36), dpi=60)
    for panel in panels:
        place = panel["gridPos"]
        left, width = place["x"] / 24, place["w"] / 24
        bottom, height = 1 - (place["y"] + place["h"]) / rows, place["h"] / rows
        if panel["type"] == "row":
            figure.text(left + 0.01, bottom + height / 3, panel["title"], fontsize=13, weight="bold")
            continue
        box = (left + 0.03, bottom + 1.2 / rows, width - 0.04, height - 2.4 / rows)
        axes = figure.add_axes(box if panel["type"] != "stat" else (left, bottom, width, height))
        {"stat": _stat, "table": _table, "timeseries": _lines}[panel["type"]](axes, prometheus, panel)
    figure.text(0.5, 1 - 0.2 / rows, dashboard["title"], ha="center", va="top", fontsize=14)
    return figure


def _expressions(panel: Object) -> list[tuple[str, str]]:
    found = []
    for target in panel["targets"]:
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        found.append((expression, target["legendFormat"]))
    return found


def _stat(axes: Axes, prometheus: Prometheus, panel: Object) -> None:
    (answer,) = [prometheus.query(expression) for expression, _ in _expressions(panel)]
    axes.axis("off")
    text = _written(answer[0][1], panel["fieldConfig"]["defaults"]["unit"]) if answer else "no data"
    axes.text(0.5, 0.55, text, ha="center", va="center", fontsize=20, color="tab:green")
    axes.text(0.5, 0.12, panel["title"], ha="center", fontsize=10)


def _table(axes: Axes, prometheus: Prometheus, panel: Object) -> None:
    axes.axis("off")
    axes.set_title(panel["title"], fontsize=10)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    lines = [
        f"{', '.join(labels.values())}   {_written(value, unit)}"
        for expression, _ in _expressions(panel)
        for labels, value in prometheus.query(expression)
    ]
    axes.text(0.02, 0.95, "\n".join(lines[:10]) or "nothing", va="top", fontsize=9, family="monospace")


def _lines(axes: Axes, prometheus: Prometheus, panel: Object) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    series: list[tuple[str, list[float], list[float]]] = []
    for expression, legend in _expressions(panel):
        for labels, points in prometheus.range(expression, seconds=SECONDS, step_s=STEP_S):
            name = legend
            for label, value in labels.items():
                name = name.replace(f"{{{{{label}}}}}", value)
            name = "none" if "{{" in name else name
            series.append((name, [float(at) for at, _ in points], [float(value) for _, value in points]))
    now = max((times[-1] for _, times, _ in series), default=0.0)
    for name, times, values in series[:12]:
        axes.plot([at - now for at in times], values, label=textwrap.shorten(name, 40), linewidth=1.2)
    axes.set_title(panel["title"], fontsize=10)
    axes.set_xlim(-SECONDS, 0)
    axes.set_ylim(
        0, max((value for *_, values in series for value in values if isfinite(value)), default=0.0) * 1.4 or 1.0
    )
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.yaxis.set_major_formatter(lambda value, _: _written(value, defaults["unit"]))
    if series:
        axes.legend(fontsize=6, loc="upper left", ncols=2, framealpha=0.5)


def _written(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit in LARGE:
        for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:.3g} {prefix}{LARGE[unit]}"
        return f"{value:.0f} {LARGE[unit]}"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
            if value >= 2 * size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} s"
    return f"{value:.4g}"


def main(folder: Path) -> None:
    """Run the scene and write one picture for each dashboard."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_scene(Path(scratch), nodes=NODES, bytes_per_s=3e6) as scene,
    ):
        began = time.time()
        scene.play()
        live(scene, began + SECONDS)
        for file in sorted(DASHBOARDS.glob("*.json")):
            figure = draw(scene.prometheus, json.loads(file.read_text()))
            figure.savefig(folder / f"dashboard-{file.stem}.png")
            plt.close(figure)
            print(f"wrote {folder / f'dashboard-{file.stem}.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else IMAGES)
