"""The arithmetic of the scale benchmark: what metrics say, quantiles, and the formula for more nodes."""

from __future__ import annotations

from benchmarks.scale.figures import Phase, Scale, Start, Traffic, quantile, rows
from benchmarks.scale.readings import parse_metrics, sums

METRICS = """
# HELP requests_total Requests
requests_total{verb="list",resource="nodes",result="200"} 2.0
requests_total{verb="list",resource="nodes",result="500"} 1.0
requests_total{verb="watch",resource="pods",result="200"} 4.0
leader 1.0
"""


def phase(*, pss_mb: float, **counts: int) -> Phase:
    traffic = Traffic(requests=counts, received_bytes={"watch nodes": 600_000, "apply x": 1_000}, cpu_s=1.0)
    nothing = Traffic(requests={"watch modelcachenodes": 50}, received_bytes={}, cpu_s=0.0)
    return Phase(
        seconds=120.0,
        controller=traffic,
        agents=nothing,
        rounds_s=(0.1, 0.3, 0.2),
        pss_bytes=int(pss_mb * 1e6),
        heartbeats=0,
        server_cpu_s=1.0,
    )


def scale() -> Scale:
    return Scale(
        nodes=100,
        models=5,
        fetch_s=(1.0, 2.0),
        object_bytes={},
        empty_pss_bytes=70_000_000,
        start=Start(seconds_to_first_plan=1.0, peak_rss_bytes=90, pss_bytes=80, listed_bytes=10, first_plan_s=0.1),
        rest=phase(pss_mb=80, **{"replace leases": 60, "watch nodes": 3}),
        warmup=phase(pss_mb=90, **{"patch modelcachenodes": 100, "patch nodes": 100, "patch modelwarmups": 4}),
        assigned_s=(1.0, 2.0),
        ready_s=(3.0, 4.0),
        known_ready_s=5.0,
        server_pss_bytes=1,
    )


def test_metrics_are_summed_up_by_label() -> None:
    """Other labels don't matter."""
    lines = list(parse_metrics(METRICS))
    assert sums(lines, "requests_total", "verb", "resource") == {"list nodes": 3, "watch pods": 4}
    assert sums(lines, "leader") == {"": 1}


def test_quantiles_are_values_that_were_seen() -> None:
    """And 0 of nothing."""
    assert quantile(tuple(float(number) for number in range(100)), 0.99) == 99.0
    assert quantile((3.0, 1.0, 2.0), 0.5) == 2.0
    assert quantile((3.0, 1.0, 2.0), 1.0) == 3.0
    assert quantile((), 0.5) == 0.0


def test_what_is_constant_stays_and_the_rest_grows_with_the_nodes() -> None:
    """The lease is one's, memory has a base, watches begin again as often as each lasts."""
    found = {row.title: row for row in rows(scale())}
    lease = found["at rest: controller, beside watches"]
    assert (lease.measured, lease.at(5000)) == (30.0, 30.0)
    memory = found["controller: memory (PSS) at rest"]
    assert (memory.measured, memory.constant, round(memory.at(5000))) == (80.0, 70.0, 570)
    assert found["warm-up: controller's writes to nodes"].at(5000) == 10_000
    watches = found["at rest: agents' watches begun again"]
    assert (watches.measured, round(watches.at(4500))) == (25.0, 1200)
