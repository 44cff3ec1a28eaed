"""Each alert fires when its fault is made and stops when it is mended, by promtool's own evaluation of the rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.prometheus import promtool
from tests.manifests.chart import CHART

RULES = CHART / "files/alerts.yaml"
AGENT = 'job="cacheagent",component="agent",node="n1"'
FLAT = "0x600"


@dataclass(frozen=True, kw_only=True)
class Case:
    """`series`: name with labels -> values at each minute, in promtool's notation. The alert is quiet at `quiet`, fires
    at `fires` with these labels, and is quiet again at `mended`; all in promtool's durations."""

    series: dict[str, str]
    fires: str
    mended: str
    labels: dict[str, str] = field(default_factory=dict)
    quiet: str = "5m"


def counted(at_fault: int = 1) -> str:
    """A counter that stands still but for one rise after ten minutes."""
    return f"0x9 {at_fault}x600"


CASES = {
    "CacheagentAgentDown": Case(
        series={f"up{{{AGENT}}}": "1x9 0x20 1x100", 'up{job="other",component="agent",node="n2"}': "0x200"},
        fires="20m",
        mended="35m",
        labels={"node": "n1", "severity": "critical"},
    ),
    "CacheagentDiskNotWritable": Case(
        series={f"cacheagent_disk_writable{{{AGENT}}}": "1x9 0x9 1x100"},
        fires="15m",
        mended="25m",
        labels={"node": "n1", "severity": "critical"},
    ),
    "CacheagentDiskFilledByOthers": Case(
        series={
            f"cacheagent_store_floor_bytes{{{AGENT}}}": "100x200",
            f"cacheagent_store_free_bytes{{{AGENT}}}": "120x9 95x9 80x30 120x100",
        },
        fires="40m",
        mended="60m",
        labels={"node": "n1"},
        quiet="20m",
    ),
    "CacheagentNoRoom": Case(
        series={f'cacheagent_jobs_total{{{AGENT},source="s3",result="no-room"}}': counted()},
        fires="15m",
        mended="60m",
        labels={"node": "n1"},
    ),
    "CacheagentSourceHangs": Case(
        series={f"cacheagent_transfer_workers_abandoned_total{{{AGENT}}}": counted()},
        fires="15m",
        mended="60m",
        labels={"node": "n1"},
    ),
    "CacheagentNodeBehind": Case(
        series={
            f'cacheagent_models_wanted{{{AGENT},state="failed"}}': "0x9 1x100 0x100",
            f'cacheagent_models_wanted{{{AGENT},state="working"}}': FLAT,
            f'cacheagent_models_wanted{{{AGENT},state="on-demand"}}': "5x300",
            f'cacheagent_models_wanted{{{AGENT},state="ready"}}': "5x300",
        },
        fires="75m",
        mended="120m",
        labels={"node": "n1"},
        quiet="60m",
    ),
    "CacheagentModelDegraded": Case(
        series={'cacheagent_controller_model_degraded{pod="c-1",model="llama"}': "_x9 1x30 stale"},
        fires="25m",
        mended="50m",
        labels={"model": "llama"},
        quiet="15m",
    ),
    "CacheagentVerificationFailure": Case(
        series={
            f'cacheagent_verification_failures_total{{{AGENT},source="s3",result="checksum-mismatch"}}': counted(),
            f'cacheagent_verification_failures_total{{{AGENT},source="disk",result="corrupt"}}': FLAT,
        },
        fires="15m",
        mended="90m",
        labels={"node": "n1", "source": "s3", "result": "checksum-mismatch", "severity": "critical"},
    ),
    "CacheagentPeerLied": Case(
        series={f"cacheagent_peer_lies_total{{{AGENT}}}": counted()},
        fires="15m",
        mended="90m",
        labels={"node": "n1", "severity": "critical"},
    ),
    "CacheagentPeerFaults": Case(
        series={
            f'cacheagent_peer_faults_total{{{AGENT},result="mismatch"}}': counted(3),
            f'cacheagent_peer_faults_total{{{AGENT},result="protocol"}}': counted(1),
        },
        fires="15m",
        mended="90m",
        labels={"node": "n1", "result": "mismatch", "severity": "warning"},
    ),
    "CacheagentDiskRots": Case(
        series={f"cacheagent_scrub_lost_blobs_total{{{AGENT}}}": counted()},
        fires="15m",
        mended="90m",
        labels={"node": "n1", "severity": "critical"},
    ),
    "CacheagentOriginErrors": Case(
        series={
            f'cacheagent_jobs_total{{{AGENT},source="s3",result="forbidden"}}': "0x9 1 2 3 4 5x200",
            f'cacheagent_jobs_total{{{AGENT},source="s3",result="no-room"}}': "0+1x300",
            f'cacheagent_jobs_total{{{AGENT},source="s3",result="ready"}}': "0+1x300",
            f'cacheagent_jobs_total{{{AGENT},source="hf",result="not-found"}}': counted(),
        },
        fires="25m",
        mended="90m",
        labels={"source": "s3", "result": "forbidden"},
    ),
    "CacheagentThrash": Case(
        series={
            f'cacheagent_evicted_bytes_total{{{AGENT},result="room"}}': "0x60 0+10x60 600x600",
            f'cacheagent_evicted_bytes_total{{{AGENT},result="asked"}}': "0+100x600",
            f"cacheagent_store_capacity_bytes{{{AGENT}}}": "1000x800",
            f"cacheagent_store_floor_bytes{{{AGENT}}}": "100x800",
        },
        fires="130m",
        mended="490m",
        labels={"node": "n1"},
        quiet="90m",
    ),
    "CacheagentPodsWaitLong": Case(
        series={f"cacheagent_volume_oldest_wait_seconds{{{AGENT}}}": "0x9 0+60x50 0x100"},
        fires="55m",
        mended="70m",
        labels={"node": "n1"},
        quiet="30m",
    ),
    "CacheagentColdTooLong": Case(
        series={'cacheagent_controller_cold_since_timestamp_seconds{pod="c-1"}': "0x9 600x70 0x100"},
        fires="65m",
        mended="85m",
        quiet="50m",
    ),
    "CacheagentNoLeader": Case(
        series={
            'cacheagent_controller_leader{pod="c-1"}': "1x9 0x20 0x100",
            'cacheagent_controller_leader{pod="c-2"}': "0x9 0x20 1x100",
        },
        fires="15m",
        mended="35m",
        labels={"severity": "critical"},
    ),
    "CacheagentCertificateExpires": Case(
        series={
            'cacheagent_webhook_certificate_expiry_timestamp_seconds{pod="c-1"}': "1296000x1560 9000000x600",
            'cacheagent_webhook_certificate_expiry_timestamp_seconds{pod="c-2"}': "0x2200",
        },
        fires="25h30m",
        mended="27h",
        labels={"severity": "critical"},
        quiet="20h",
    ),
    "CacheagentWebhookDefects": Case(
        series={
            'cacheagent_webhook_reviews_total{pod="c-1",result="defect"}': counted(),
            'cacheagent_webhook_reviews_total{pod="c-1",result="refused"}': "0+1x200",
        },
        fires="15m",
        mended="60m",
    ),
}


def alerts() -> list[dict[str, Any]]:
    """As they stand in the file."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_every_alert_has_a_case() -> None:
    """And each name once, so that a case means one rule."""
    assert sorted(rule["alert"] for rule in alerts()) == sorted(CASES)


def check(folder: Path, series: dict[str, str], questions: list[tuple[str, str, list[tuple[str, float]]]]) -> None:
    """Ask promtool: expression, when, and the samples that it must give."""
    group = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": at,
                "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
            }
            for expression, at, samples in questions
        ],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [group]}))
    promtool("test", "rules", file)


@pytest.mark.parametrize("name", CASES)
def test_fires_and_stops(name: str, tmp_path: Path) -> None:
    """Quiet before the fault, firing once with the labels that people need, quiet after the mending."""
    case = CASES[name]
    wanted = ",".join(f'{key}="{value}"' for key, value in case.labels.items())
    firing = f'ALERTS{{alertname="{name}", alertstate="firing"'
    check(
        tmp_path,
        case.series,
        [
            (f"count({firing}}})", case.quiet, []),
            (f"count({firing}}})", case.fires, [("{}", 1)]),
            (f"count({firing}, {wanted}}})" if wanted else f"count({firing}}})", case.fires, [("{}", 1)]),
            (f"count({firing}}})", case.mended, []),
        ],
    )


def test_without_any_controller_nobody_leads(tmp_path: Path) -> None:
    """Series that are not there at all are no reassurance."""
    check(
        tmp_path,
        {"up": "1x30"},
        [('count(ALERTS{alertname="CacheagentNoLeader",alertstate="firing"})', "10m", [("{}", 1)])],
    )


def test_gpus_are_known_by_node(tmp_path: Path) -> None:
    """Whether the exporter's `Hostname` names the node or a relabeling did; idle ones count where pods wait."""
    series = {
        'DCGM_FI_DEV_GPU_UTIL{instance="10.0.0.1:9400",gpu="0",UUID="GPU-a",Hostname="n1"}': "0x10",
        'DCGM_FI_DEV_GPU_UTIL{instance="10.0.0.1:9400",gpu="1",UUID="GPU-b",Hostname="n1"}': "90x10",
        'DCGM_FI_DEV_GPU_UTIL{instance="x",gpu="0",UUID="GPU-c",Hostname="dcgm-exporter-7x",node="n2"}': "0x10",
        'cacheagent_volume_oldest_wait_seconds{node="n1"}': "30x10",
        'cacheagent_volume_oldest_wait_seconds{node="n2"}': "0x10",
    }
    check(
        tmp_path,
        series,
        [
            (
                f"cacheagent:{what}:count",
                "5m",
                [(f'cacheagent:{what}:count{{node="{node}"}}', count) for node, count in counts],
            )
            for what, counts in (
                ("gpus", [("n1", 2.0), ("n2", 1.0)]),
                ("gpus_idle", [("n1", 1.0), ("n2", 1.0)]),
                ("gpus_idle_while_pods_wait", [("n1", 1.0), ("n2", 0.0)]),
            )
        ]
        + [("sum(cacheagent:gpu_utilisation:ratio)", "5m", [("{}", 0.9)])],
    )


def test_instances_of_mig_are_gpus_of_their_node(tmp_path: Path) -> None:
    """Each counts by how its engine works; the utilisation that some exporters show of them, always 0, does not. A GPU
    without MIG counts once where the exporter shows both, and also where it shows the engine's only."""
    of_both = 'instance="10.0.0.1:9400",Hostname="n1",UUID="GPU-whole"'
    of_mig = 'instance="10.0.0.1:9400",Hostname="n1",UUID="GPU-mig",GPU_I_PROFILE="3g.40gb"'
    series = {
        f"DCGM_FI_DEV_GPU_UTIL{{{of_both}}}": "40x10",
        f"DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{of_both}}}": "0x10",
        f'DCGM_FI_DEV_GPU_UTIL{{{of_mig},GPU_I_ID="1"}}': "0x10",
        f'DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{of_mig},GPU_I_ID="1"}}': "0.7x10",
        f'DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{of_mig},GPU_I_ID="2"}}': "0x10",
        'DCGM_FI_PROF_GR_ENGINE_ACTIVE{Hostname="x",node="n2",UUID="GPU-new"}': "0.9x10",
        'cacheagent_volume_oldest_wait_seconds{node="n1"}': "30x10",
    }
    check(
        tmp_path,
        series,
        [
            (
                "cacheagent:gpus:count",
                "5m",
                [(f'cacheagent:gpus:count{{node="{n}"}}', c) for n, c in (("n1", 3.0), ("n2", 1.0))],
            ),
            ("sum by (node) (cacheagent:gpu_utilisation:ratio)", "5m", [('{node="n1"}', 1.1), ('{node="n2"}', 0.9)]),
            (
                "cacheagent:gpus_idle_while_pods_wait:count",
                "5m",
                [('cacheagent:gpus_idle_while_pods_wait:count{node="n1"}', 1.0)],
            ),
        ],
    )
