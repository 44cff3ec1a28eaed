"""Writes docs/metrics.md from the two modules that hold all metrics. `tests/unit/test_metrics.py` compares."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cacheagent.kube.metrics import table as controller_table
from cacheagent.metrics import MODEL_NAMES, Row
from cacheagent.metrics import table as agent_table

DOCUMENT: Final = Path(__file__).parents[1] / "docs/metrics.md"

HEAD: Final = f"""# Metrics

Prometheus text on `http://<listen>/metrics` of agents (9471, and on the agent's socket) and controllers (9472). Names
have base units. Dashboards and alerts that use them are in the chart: see [operations.md](operations.md#monitoring).

Labels are few on purpose: `model` (a name; a node tells at most {MODEL_NAMES} apart, the rest are `other`), `source`
(`s3`, `hf`, `https`, `posix`; `disk` for bytes at rest), `result`, `state`; never a file, a pod or a URL. A node with
200 models exposes less than 2,500 series.

The CSI driver has no metrics of its own, because it has no network: the kubelet counts its calls, with their seconds,
as `csi_operations_seconds{{driver_name="csi.cacheagent.io", method_name, grpc_status_code}}`. What volumes wait for is
told by the agent, which decides it.

From a pod's creation to its weights is measured by the controller, since only it sees pods:
`cacheagent_pod_weights_ready_seconds` takes both times from what Kubernetes wrote on the pod (`creationTimestamp`; the
condition `PodReadyToStartContainers`, which comes after the volumes; with `wait: init` the end of the container that
waits). They are whole seconds, and starts that happen between two leaders are not counted.

This page is generated: `python scripts/metrics_table.py` after a change in `cacheagent/metrics.py` or
`cacheagent/kube/metrics.py`.
"""

TABLE: Final = """
| name | type | unit | labels | meaning |
|---|---|---|---|---|
"""


def document() -> str:
    """The whole page."""
    return (
        f"{HEAD}\n## Agent\n{TABLE}{_lines(agent_table())}\n## Controller\n\n"
        "What speaks of the cluster (`cacheagent_controller_models`, `_placements`, `_waiting_pods` …) comes from the\n"
        f"replica that leads alone, so a sum over replicas is right.\n{TABLE}{_lines(controller_table())}"
    )


def _lines(rows: Iterable[Row]) -> str:
    return "".join(f"| `{name}` | {kind} | {unit} | {labels} | {text} |\n" for name, kind, unit, labels, text in rows)


if __name__ == "__main__":
    DOCUMENT.write_text(document())
    print(f"wrote {DOCUMENT}")
