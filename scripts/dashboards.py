"""Writes daemonset/chart/dashboards/*.json: which panels there are and what they ask; `grafana.py` is the format.
`tests/manifests/test_monitoring.py` compares; `tests/integration/test_prometheus.py` asks a real Prometheus for every
expression.

Usage: python scripts/dashboards.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from grafana import Panel, Section, dashboard, stat, variable

FOLDER: Final = Path(__file__).parents[1] / "daemonset/chart/dashboards"


def of(*conditions: str, node: bool = False) -> str:
    """A selector: the namespaces, perhaps the nodes that were chosen, and further conditions."""
    chosen = ['namespace=~"$namespace"', *(['node=~"$node"'] if node else []), *conditions]
    return "{" + ", ".join(chosen) + "}"


HIT: Final = 'result="hit"'
FETCHED: Final = 'result="fetched"'
READY: Final = 'result="ready"'
CHOSEN: Final = 'model=~"$model"'
THROTTLED: Final = "cacheagent_transfer_throttled_seconds_total"
WAITS: Final = "cacheagent_volume_wait_seconds_count"
JOB_SECONDS: Final = "cacheagent_job_duration_seconds"
FAILED: Final = of('result!="ready"')
AGENTS: Final = of('job="cacheagent"', 'component="agent"')
ALL: Final = of()
HERE: Final = of(node=True)
MODEL: Final = of(CHOSEN, node=True)


def _summed(metric: str, *conditions: str, node: bool = False, over: str = "$__range") -> str:
    return f"sum(increase({metric}{of(*conditions, node=node)}[{over}]))"


def _what_there_was(query: str) -> str:
    """Most of what is counted by source and cause stays at zero, and would fill the legend."""
    return f"{query} > 0 or vector(0)"


def _quantile(share: float, metric: str, by: str = "le", *, node: bool = False) -> str:
    return f"histogram_quantile({share}, sum by ({by}) (increase({metric}_bucket{of(node=node)}[$__range])))"


_FETCHED_BYTES_A_SECOND: Final = (
    f"({_summed('cacheagent_model_bytes_total', FETCHED, over='7d')}"
    f" / {_summed('cacheagent_job_duration_seconds_sum', READY, over='7d')})"
)
_GPUS_A_POD: Final = (
    f"({_summed('cacheagent_pod_gpus_total', over='7d')}"
    f" / {_summed('cacheagent_pod_weights_ready_seconds_count', over='7d')})"
)
SAVED_GPU_SECONDS: Final = (
    f"{_summed('cacheagent_volume_bytes_total', HIT)} / {_FETCHED_BYTES_A_SECOND} * {_GPUS_A_POD}"
)
"""Bytes that pods found on their node, by what a download brings a second, by the GPUs that a pod holds meanwhile."""

FLEET: Final = (
    Section(
        "Starts",
        [
            stat(
                "GPU time saved",
                SAVED_GPU_SECONDS,
                "An estimate: bytes of models that pods found on their node, divided by the rate at which this fleet's "
                "downloads ran in the last 7 days, times the GPUs of a pod. Without the cache each of these starts "
                "would have waited for such a download.",
                "s",
            ),
            stat(
                "GPU time spent waiting",
                _summed("cacheagent_pod_gpu_wait_seconds_total"),
                "Measured: GPUs that pods held on a node, times the seconds until their weights were mounted.",
                "s",
            ),
            stat(
                "Warm starts",
                f"{_summed(WAITS, HIT)} / {_summed(WAITS)}",
                "Volumes whose model was on the node when they first asked.",
                "percentunit",
            ),
            stat(
                "Pod to weights, 95 %",
                _quantile(0.95, "cacheagent_pod_weights_ready_seconds"),
                "From the creation of a pod until its weights are mounted; 95 % of pods were faster.",
                "s",
            ),
            stat(
                "Pods that wait",
                f"sum(cacheagent_controller_waiting_pods{ALL})",
                "Pods without their weights, wherever they wait.",
            ),
            stat(
                "GPUs that wait",
                f"sum(cacheagent_controller_waiting_gpus{ALL})",
                "GPUs held on a node by pods that wait for weights.",
                red_above=1,
            ),
            Panel(
                "From a pod's creation to its weights",
                [
                    (_quantile(share, "cacheagent_pod_weights_ready_seconds"), name)
                    for share, name in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
                ],
                "The objective that users feel. Over the whole range of the dashboard at each point.",
                "s",
            ),
            Panel(
                "Volumes: found here, or waited for",
                [(f"sum by (result) (rate(cacheagent_volume_mounts_total{ALL}[$__rate_interval])) * 60", "{{result}}")],
                "Mounts a minute.",
                stacked=True,
            ),
            Panel(
                "Pods that wait, by where",
                [(f"sum by (stage) (cacheagent_controller_waiting_pods{ALL})", "{{stage}}")],
                "gate: kept back until enough nodes have the model; scheduling: no node yet; node: it holds its GPUs.",
                stacked=True,
            ),
        ],
    ),
    Section(
        "GPUs",
        [
            Panel(
                "Idle GPUs",
                [
                    ("sum(cacheagent:gpus:count)", "all"),
                    ("sum(cacheagent:gpus_idle:count)", "idle (under 5 %)"),
                    ("sum(cacheagent:gpus_idle_while_pods_wait:count)", "idle where a pod waits for weights"),
                    (f"sum(cacheagent_controller_waiting_gpus{ALL})", "held by pods that wait"),
                ],
                "DCGM's utilisation, joined by node with pods that wait for weights (recording rules of this chart). "
                "An instance of MIG counts as one.",
                width=12,
            ),
            Panel(
                "Nodes whose GPUs idle while pods wait",
                [("cacheagent:gpus_idle_while_pods_wait:count", "{{node}}")],
                "Idle GPUs on nodes where at least one pod waits for weights at that moment.",
                width=12,
                stacked=True,
            ),
        ],
    ),
    Section(
        "Models and nodes",
        [
            Panel(
                "Models by condition",
                [(f"sum by (condition) (cacheagent_controller_models{ALL})", "{{condition}}")],
                "How many ModelCaches are resolved, ready everywhere, degraded.",
            ),
            Panel(
                "Models on nodes",
                [(f"sum by (state) (cacheagent_controller_placements{ALL})", "{{state}}")],
                "One model on one node is one.",
            ),
            Panel(
                "Nodes",
                [
                    (f"sum(cacheagent_controller_cache_nodes{ALL})", "with a cache"),
                    (f"sum(cacheagent_controller_cold_nodes{ALL})", "cold"),
                    (f"sum(up{AGENTS})", "agents that answer"),
                ],
                "Cold: kept free of pods by the taint until the required models are there.",
            ),
            Panel(
                "Room on all disks",
                [
                    (f"sum(cacheagent_store_used_bytes{ALL})", "used"),
                    (f"sum(cacheagent_store_evictable_bytes{ALL})", "of it evictable"),
                    (f"sum(cacheagent_store_reserved_bytes{ALL})", "reserved"),
                    (f"sum(cacheagent_store_free_bytes{ALL})", "free"),
                ],
                "Bytes of models, what of them may go, what running downloads still take, and free space.",
                "bytes",
            ),
            Panel(
                "Bytes from origins",
                [
                    (
                        _what_there_was(
                            f"sum by (source) (rate(cacheagent_transfer_bytes_total{ALL}[$__rate_interval]))"
                        ),
                        "{{source}}",
                    )
                ],
                "What arrived and is on disk.",
                "Bps",
                stacked=True,
            ),
            Panel(
                "Downloads that failed",
                [
                    (
                        _what_there_was(f"sum by (source, result) (increase(cacheagent_jobs_total{FAILED}[$__range]))"),
                        "{{source}} {{result}}",
                    )
                ],
                "By kind of source and cause. They are tried again.",
            ),
            Panel(
                "Evictions",
                [(f"sum by (result) (rate(cacheagent_evicted_bytes_total{ALL}[$__rate_interval]))", "{{result}}")],
                "room: for another model; watermark: ahead of time; asked: by somebody.",
                "Bps",
                stacked=True,
            ),
            Panel(
                "Wrong bytes",
                [
                    (
                        _what_there_was(
                            f"sum by (source, result) (increase(cacheagent_verification_failures_total{ALL}[$__range]))"
                        ),
                        "{{source}} {{result}}",
                    )
                ],
                "Never served. Anything above zero wants a look.",
            ),
            Panel(
                "Alerts",
                [('count by (alertname, severity) (ALERTS{alertname=~"Cacheagent.*", alertstate="firing"})', "")],
                "Those of this chart that fire.",
                kind="table",
            ),
        ],
    ),
    Section(
        "Control plane",
        [
            stat(
                "Leaders",
                f"sum(cacheagent_controller_leader{ALL})",
                "One, whatever the number of replicas.",
            ),
            stat(
                "Certificate ends in",
                f"min(cacheagent_webhook_certificate_expiry_timestamp_seconds{ALL}) - time()",
                "The webhook's own; renewed a month before.",
                "s",
            ),
            Panel(
                "Reviews of pods",
                [
                    (
                        f"sum by (result) (rate(cacheagent_webhook_reviews_total{ALL}[$__rate_interval])) * 60",
                        "{{result}}",
                    )
                ],
                "A minute. refused: with a sentence for the user; defect: ours.",
            ),
            Panel(
                "Review and plan, 95 %",
                [
                    (_quantile(0.95, "cacheagent_webhook_review_duration_seconds"), "review"),
                    (_quantile(0.95, "cacheagent_controller_plan_duration_seconds"), "plan"),
                ],
                "How long the API server waits for the webhook, and how long one round of planning takes.",
                "s",
            ),
            Panel(
                "Requests to the API server",
                [
                    (
                        f"sum by (verb) (rate(cacheagent_controller_api_requests_total{ALL}[$__rate_interval]))",
                        "{{verb}}",
                    ),
                    (f"sum(cacheagent_controller_backlog_changes{ALL})", "changes not written yet"),
                ],
                "A second. At rest there are next to none.",
            ),
        ],
    ),
)

NODE: Final = (
    Section(
        "Pods and models",
        [
            stat(
                "Disk takes writes",
                f"min(cacheagent_disk_writable{HERE})",
                "0: read-only, failing or hanging.",
            ),
            stat(
                "Pods that wait", f"sum(cacheagent_volumes_waiting{HERE}) or vector(0)", "Volumes without their model."
            ),
            stat(
                "Longest wait",
                f"max(cacheagent_volume_oldest_wait_seconds{HERE})",
                "Of the volume that waits longest now.",
                "s",
                red_above=1800,
            ),
            stat("Mounted volumes", f"sum(cacheagent_leases{HERE})", "Their models are never evicted."),
            stat("Downloads", f"sum(cacheagent_jobs_running{HERE})", "In flight."),
            stat(
                "Warm starts",
                f"{_summed(WAITS, HIT, node=True)} / {_summed(WAITS, node=True)}",
                "Volumes whose model was here when they first asked.",
                "percentunit",
            ),
            Panel(
                "Models by state",
                [(f"sum by (state) (cacheagent_models_wanted{HERE})", "{{state}}")],
                "What shall be here.",
                stacked=True,
            ),
            Panel(
                "How far models are",
                [
                    (
                        (
                            f"sum by (node, model) (cacheagent_model_done_bytes{HERE})"
                            f" / sum by (node, model) (cacheagent_model_size_bytes{HERE})"
                        ),
                        "{{model}} {{node}}",
                    )
                ],
                "Proved bytes of all bytes.",
                "percentunit",
            ),
            Panel(
                "Volumes that wait",
                [(f"sum by (model) (cacheagent_volumes_waiting{HERE})", "{{model}}")],
                "By model.",
                stacked=True,
            ),
            Panel(
                "Wait of volumes",
                [
                    (
                        _quantile(0.5, "cacheagent_volume_wait_seconds", "le, result", node=True) + " >= 0",
                        "{{result}} median",
                    ),
                    (
                        _quantile(0.95, "cacheagent_volume_wait_seconds", "le, result", node=True) + " >= 0",
                        "{{result}} 95 %",
                    ),
                ],
                "From a volume's first request until its lease, over the whole range.",
                "s",
            ),
            Panel(
                "In memory",
                [(f"sum by (node, model) (cacheagent_page_cache_resident_ratio{HERE})", "{{model}} {{node}}")],
                "Part of each model that was read into memory for pods and still is there.",
                "percentunit",
            ),
            Panel(
                "GPU utilisation",
                [('avg by (node) (cacheagent:gpu_utilisation:ratio{node=~"$node"})', "{{node}}")],
                "By DCGM's exporter; the mean of GPUs and of MIG's instances.",
                "percentunit",
            ),
        ],
    ),
    Section(
        "Disk",
        [
            Panel(
                "Room",
                [
                    (f"sum(cacheagent_store_used_bytes{HERE})", "used"),
                    (f"sum(cacheagent_store_evictable_bytes{HERE})", "of it evictable"),
                    (f"sum(cacheagent_store_reserved_bytes{HERE})", "reserved"),
                    (f"sum(cacheagent_store_free_bytes{HERE})", "free"),
                    (f"sum(cacheagent_store_floor_bytes{HERE})", "floor"),
                ],
                "Free space is never taken below the floor.",
                "bytes",
            ),
            Panel(
                "Evicted versions",
                [(f"sum by (result) (increase(cacheagent_evictions_total{HERE}[$__range]))", "{{result}}")],
                "room: for another model; watermark: ahead of time; asked: by somebody.",
            ),
            Panel(
                "Re-reading",
                [
                    (f"avg(cacheagent_scrub_progress_ratio{HERE})", "re-read within the period"),
                    (f"sum(cacheagent_store_quarantined_blobs{HERE})", "files in quarantine"),
                    (_summed("cacheagent_scrub_bad_pieces_total", node=True), "bad pieces"),
                ],
                "Everything at rest is read again within a week and compared.",
            ),
        ],
    ),
    Section(
        "Downloads",
        [
            Panel(
                "Ingress",
                [
                    (f"sum(rate(cacheagent_ingress_bytes_total{HERE}[$__rate_interval]))", "read"),
                    (f"sum(cacheagent_ingress_cap_bytes_per_second{HERE})", "cap (0: none)"),
                ],
                "Off the network and mounted sources, hedges and repeated pieces included.",
                "Bps",
            ),
            Panel(
                "Use of the cap",
                [(f"max by (node) (cacheagent_ingress_cap_utilisation_ratio{HERE})", "{{node}}")],
                "1: the cap is what limits downloads.",
                "percentunit",
            ),
            Panel(
                "Pieces of 16 MiB",
                [
                    (
                        _quantile(0.5, "cacheagent_transfer_piece_duration_seconds", "le, source", node=True) + " >= 0",
                        "{{source}} median",
                    ),
                    (
                        _quantile(0.95, "cacheagent_transfer_piece_duration_seconds", "le, source", node=True)
                        + " >= 0",
                        "{{source}} 95 %",
                    ),
                ],
                "From request to last write.",
                "s",
            ),
            Panel(
                "Asked again",
                [
                    (
                        _what_there_was(
                            f"sum by (source, result) (increase(cacheagent_transfer_retries_total{HERE}[$__range]))"
                        ),
                        "{{source}} {{result}}",
                    ),
                    (
                        f"sum by (result) (increase(cacheagent_transfer_hedges_total{HERE}[$__range]))",
                        "hedges {{result}}",
                    ),
                ],
                "Retries by cause, and late pieces that were asked for twice.",
            ),
            Panel(
                "Slowed down",
                [
                    (
                        _what_there_was(f"sum by (source) (rate({THROTTLED}{HERE}[$__rate_interval]))"),
                        "{{source}}",
                    ),
                ],
                "Seconds a second that were waited because the origin asked for it (429, 503).",
            ),
            Panel(
                "Connections and workers",
                [
                    (f"sum(cacheagent_transfer_connections{HERE})", "connections"),
                    (f"sum(cacheagent_transfer_workers{HERE})", "workers"),
                    (_summed("cacheagent_transfer_workers_lost_total", node=True), "workers lost"),
                    (_summed("cacheagent_transfer_workers_abandoned_total", node=True), "workers that hang"),
                ],
                "What moves the bytes.",
            ),
            Panel(
                "Length of downloads",
                [
                    (
                        (
                            f"sum by (source, result) (increase({JOB_SECONDS}_sum{HERE}[$__range]))"
                            f" / (sum by (source, result) (increase({JOB_SECONDS}_count{HERE}[$__range])) > 0)"
                        ),
                        "{{source}} {{result}}",
                    )
                ],
                "Mean over the range, whole models.",
                "s",
            ),
            Panel(
                "Bytes by how they came",
                [
                    (
                        _what_there_was(
                            f"sum by (source, result) (increase(cacheagent_model_bytes_total{HERE}[$__range]))"
                        ),
                        "{{source}} {{result}}",
                    )
                ],
                "fetched from the origin, kept from an interrupted download, linked because they were here.",
                "bytes",
            ),
            Panel(
                "Written through the page cache",
                [
                    (
                        f"sum by (node) (rate(cacheagent_transfer_buffered_bytes_total{HERE}[$__rate_interval]))",
                        "{{node}}",
                    )
                ],
                "Where the filesystem refuses O_DIRECT: slower, and at the cost of memory.",
                "Bps",
            ),
        ],
    ),
)

MODELS: Final = (
    Section(
        "$model",
        [
            stat("Nodes that have it", f"sum(cacheagent_model_ready{MODEL})", "Verified and ready to be mounted."),
            stat("Nodes that know it", f"count(cacheagent_model_ready{MODEL})", "Kept warm there, or on demand."),
            stat("Size", f"max(cacheagent_model_size_bytes{MODEL})", "All its files.", "bytes"),
            stat(
                "Volumes that wait",
                f"sum(cacheagent_volumes_waiting{MODEL}) or vector(0)",
                "Of pods, now.",
                red_above=1,
            ),
            stat(
                "Warm starts",
                f"{_summed('cacheagent_volume_mounts_total', CHOSEN, HIT, node=True)}"
                f" / {_summed('cacheagent_volume_mounts_total', CHOSEN, node=True)}",
                "Volumes that found it on their node.",
                "percentunit",
            ),
            stat(
                "Degraded",
                'max(cacheagent_controller_model_degraded{namespace=~"$namespace", model=~"$model"}) or vector(0)',
                "1: some node can't have it, or found something else at its source.",
                red_above=1,
            ),
            Panel(
                "Nodes",
                [
                    (f"count by (model) (cacheagent_model_ready{MODEL} == 1)", "{{model}} ready"),
                    (f"count by (model) (cacheagent_model_ready{MODEL})", "{{model}} known"),
                ],
                "How many have it, of those that know it.",
            ),
            Panel(
                "How far it is",
                [
                    (
                        (
                            f"sum by (node, model) (cacheagent_model_done_bytes{MODEL})"
                            f" / sum by (node, model) (cacheagent_model_size_bytes{MODEL})"
                        ),
                        "{{node}} {{model}}",
                    )
                ],
                "By node.",
                "percentunit",
            ),
            Panel(
                "Nodes that are behind",
                [
                    (
                        (
                            f"(sum by (node, model) (cacheagent_model_size_bytes{MODEL})"
                            f" - sum by (node, model) (cacheagent_model_done_bytes{MODEL})) > 0"
                        ),
                        "{{node}} {{model}}",
                    )
                ],
                "Bytes that are missing.",
                "bytes",
                kind="table",
            ),
            Panel(
                "Mounts",
                [
                    (
                        f"sum by (model, result) (increase(cacheagent_volume_mounts_total{MODEL}[$__range]))",
                        "{{model}} {{result}}",
                    )
                ],
                "hit: it was here; miss: a pod waited for it.",
                stacked=True,
            ),
            Panel(
                "Volumes that wait",
                [(f"sum by (node, model) (cacheagent_volumes_waiting{MODEL})", "{{node}} {{model}}")],
                "By node.",
                stacked=True,
            ),
            Panel(
                "In memory",
                [(f"sum by (node, model) (cacheagent_page_cache_resident_ratio{MODEL})", "{{node}} {{model}}")],
                "Part of it that was read into memory and still is there.",
                "percentunit",
            ),
            Panel(
                "Requests over the socket",
                [
                    (
                        f"sum by (model, result) (increase(cacheagent_ensure_requests_total{MODEL}[$__range]))",
                        "{{model}} {{result}}",
                    )
                ],
                "By command line and other clients of the agent.",
            ),
        ],
    ),
)


NAMESPACE_CHOICE: Final = variable("namespace", "Namespace", "label_values(cacheagent_build_info, namespace)")
NODE_CHOICE: Final = variable("node", "Node", f"label_values(cacheagent_build_info{ALL}, node)")
MODEL_CHOICE: Final = variable("model", "Model", f"label_values(cacheagent_model_ready{ALL}, model)")


def texts() -> dict[str, str]:
    """File name and content."""
    made = {
        "fleet": dashboard("fleet", "cacheagent / fleet", FLEET, NAMESPACE_CHOICE),
        "node": dashboard("node", "cacheagent / node", NODE, NAMESPACE_CHOICE, NODE_CHOICE),
        "model": dashboard("model", "cacheagent / model", MODELS, NAMESPACE_CHOICE, MODEL_CHOICE, NODE_CHOICE),
    }
    return {f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text)
        print(f"wrote {FOLDER / name}")
