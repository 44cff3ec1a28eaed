"""From runs to figures: one summary of each cell, and the bars. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median

from benchmarks.fanout.cell import SCENARIOS, Cell, Run, Source, Variant
from benchmarks.outcome import Figure
from cacheagent.model import Value

GB = 1e9
SERVER = "cacheagent.peers.server"
"""The program that sends to peers."""


class Summary(Value):
    """All runs of one cell that went well. `median_s`: of the runs' median nodes the median; `worst_s`: the slowest
    node of all runs. The rest are medians over the runs.
    """

    cell: Cell
    runs: int
    failures: int
    median_s: float
    worst_s: float
    origin_copies: float
    cpu_s_per_gb: float
    send_cpu_s_per_gb: float
    machine_cpu: float
    pss_bytes: float

    @property
    def links(self) -> float:
        """The median in times of what the links permit."""
        return self.median_s / self.cell.limit_s


def summarize(runs: Iterable[Run]) -> list[Summary]:
    """By cell, in the order of the table."""
    by_cell: defaultdict[Cell, list[Run]] = defaultdict(list)
    for run in runs:
        by_cell[run.cell].append(run)
    found = [_summary(cell, some) for cell, some in by_cell.items() if any(not run.failure for run in some)]
    return sorted(found, key=lambda each: _order(each.cell))


def find(summaries: Sequence[Summary], variant: Variant, nodes: int, like: Cell) -> Summary | None:
    """The cell of that variant and size whose links and source are like those of another."""
    return next(
        (
            each
            for each in summaries
            if (each.cell.variant, each.cell.nodes, each.cell.scenario) == (variant, nodes, "undisturbed")
            and not each.cell.is_tree
            and _links(each.cell) == _links(like)
            and (variant == "aria2" or each.cell.source == like.source)
        ),
        None,
    )


def figures(summaries: Sequence[Summary]) -> Iterator[Figure]:
    """Every bar; without the runs it has no value. Fleets are compared with one node for each source and congestion
    control that was measured with both; the origin's copies are those of sources that need no spot checks, if there
    are any; the rest is of the other source."""
    yield from _flat(summaries, 16, 1.10, 1.20)
    yield from _flat(summaries, 32, 1.15, 1.30)
    yield from _copies(summaries)
    ours = {each.cell.source for each in summaries if each.cell.variant == "peers"}
    summaries = _of(summaries, "s3" if "s3" in ours else "sha256")
    yield _slow_origin(summaries)
    yield from _alone(summaries)
    yield _thin(summaries)
    yield from _disturbed(summaries)
    yield _sending(summaries)
    yield _against_aria2(summaries)


def _flat(summaries: Sequence[Summary], nodes: int, bar: float, worst_bar: float) -> Iterator[Figure]:
    fleets = [each for each in _peers(summaries) if each.cell.nodes == nodes and each.cell.is_bound_by_links]
    pairs = [(many, one) for many in fleets if (one := find(summaries, "peers", 1, many.cell))]
    if not pairs:
        yield _figure(f"T({nodes}) / T(1), median node", None, bar, "", "not measured")
    for many, one in pairs:
        links = f"{many.cell.size_bytes / 1e6:.0f} MB at {many.cell.rate_bytes_per_s / 1e6:g} MB/s"
        kind = f"{many.cell.source}, {many.cell.tcp}, {links}"
        how = f"peers; the node's own link bounds T(1); CPUs busy {many.machine_cpu:.0%}; runs: {many.runs}"
        yield _figure(f"T({nodes}) / T(1), median node; {kind}", many.median_s / one.median_s, bar, "", how)
        yield _figure(
            f"T({nodes}) / T(1), slowest node of all runs; {kind}", many.worst_s / one.median_s, worst_bar, "", how
        )


def _copies(summaries: Sequence[Summary]) -> Iterator[Figure]:
    quiet = [each for each in _peers(summaries) if each.cell.nodes > 1]
    proved = [each for each in quiet if each.cell.source == "sha256"] or quiet
    loud = [each for each in summaries if each.cell.scenario in {"killed", "slow"} and each.cell.variant == "peers"]
    for what, some, bar in (("undisturbed", proved, 1.02), ("one member killed or slow", loud, 1.12)):
        cells = ", ".join(f"{each.cell.source} N = {each.cell.nodes}" for each in some)
        how = f"the most of all cells' medians ({cells}); on the origin's link, headers and what is sent twice included"
        yield _figure(f"origin bytes, {what}", max((each.origin_copies for each in some), default=None), bar, "S", how)


def _slow_origin(summaries: Sequence[Summary]) -> Figure:
    found = [each.links for each in _peers(summaries) if each.cell.origin_links < 1]
    how = "median node; T over max(S/link, S/origin)"
    return _figure("origin of a quarter of a link, 16 nodes", max(found, default=None), 1.2, "", how)


def _alone(summaries: Sequence[Summary]) -> Iterator[Figure]:
    for nodes in (1, 2):
        ratios = _on_against_off(summaries, [each for each in _peers(summaries) if each.cell.nodes == nodes])
        most = max((ratio for _, ratio in ratios), default=None)
        yield _figure(f"N = {nodes}, peers on against off", most, 1.02, "", "median nodes of both")


def _thin(summaries: Sequence[Summary]) -> Figure:
    """What object storage gives a connection is a part of a link; without peers a node opens many."""
    thin = [each for each in summaries if each.cell.variant == "peers" and each.cell.connection_bytes_per_s]
    ratios = _on_against_off(summaries, thin)
    how = f"median nodes of both, the most of N = {', '.join(str(nodes) for nodes, _ in ratios)}"
    most = max((ratio for _, ratio in ratios), default=None)
    return _figure("thin connections to the origin, peers on against off", most, 1.1, "", how)


def _on_against_off(summaries: Sequence[Summary], ours: Iterable[Summary]) -> list[tuple[int, float]]:
    """Nodes, and their median with peers over that without, of each that was measured both ways."""
    pairs = [(on, off) for on in ours if (off := find(summaries, "direct", on.cell.nodes, on.cell))]
    return [(on.cell.nodes, on.median_s / off.median_s) for on, off in pairs]


def _disturbed(summaries: Sequence[Summary]) -> Iterator[Figure]:
    for scenario in (each for each in SCENARIOS if each != "undisturbed"):
        ours = (each for each in summaries if each.cell.variant == "peers")
        hurt = next((each for each in ours if each.cell.scenario == scenario), None)
        quiet = find(summaries, "peers", hurt.cell.nodes, hurt.cell) if hurt else None
        how = "the others, over the median of undisturbed runs of as many nodes"
        for what, value, bar in (
            ("median", hurt.median_s / quiet.median_s if hurt and quiet else None, 1.10),
            ("worst of all runs", hurt.worst_s / quiet.median_s if hurt and quiet else None, 1.30),
        ):
            yield _figure(f"one member of 16 {scenario}, {what}", value, bar, "", how)


def _sending(summaries: Sequence[Summary]) -> Figure:
    quick = [each for each in _peers(summaries) if each.cell.nodes == 16 and each.cell.is_bound_by_links]
    found = [each.send_cpu_s_per_gb for each in quick]
    how = (
        "CPU seconds of the sending processes by what the nodes sent, 16 nodes; the kernel's work for whatever packets "
        "arrive while they run counts in: `benchmarks.sending` measures sending apart"
    )
    return _figure("CPU to send", max(found, default=None), 0.45, "CPU-s/GB", how)


def _against_aria2(summaries: Sequence[Summary]) -> Figure:
    ratios = {
        each.cell.nodes: other.median_s / each.median_s
        for each in _peers(summaries)
        if each.cell.nodes > 1 and (other := find(summaries, "aria2", each.cell.nodes, each.cell))
    }
    how = f"aria2's median node over ours, the least of N = {', '.join(map(str, sorted(ratios)))}"
    least = min(ratios.values(), default=None)
    return Figure(title="against aria2", value=least, bar=1.0, is_upper_bound=False, unit="x", how=how)


def _of(summaries: Sequence[Summary], source: Source) -> list[Summary]:
    """With that source, and what has none."""
    return [each for each in summaries if each.cell.variant == "aria2" or each.cell.source == source]


def _figure(title: str, value: float | None, bar: float, unit: str, how: str) -> Figure:
    return Figure(title=title, value=value, bar=bar, is_upper_bound=True, unit=unit, how=how)


def _peers(summaries: Sequence[Summary]) -> list[Summary]:
    """Undisturbed, in one cohort, from an origin that gives each connection what its link carries."""
    ours = (each for each in summaries if each.cell.variant == "peers" and each.cell.disturbed is None)
    return [each for each in ours if not each.cell.connection_bytes_per_s and not each.cell.is_tree]


def _links(cell: Cell) -> tuple[object, ...]:
    return cell.rate_bytes_per_s, cell.origin_links, cell.size_bytes, cell.connection_bytes_per_s, cell.tcp


def _order(cell: Cell) -> tuple[object, ...]:
    variants = ("direct", "aria2", "peers")
    links = (-cell.rate_bytes_per_s, -cell.origin_links, -cell.size_bytes, -cell.connection_bytes_per_s)
    kind = (variants.index(cell.variant), SCENARIOS.index(cell.scenario), cell.source)
    return (*kind, *links, cell.tcp, -cell.cohort, cell.nodes)


def _summary(cell: Cell, runs: Sequence[Run]) -> Summary:
    good = [run for run in runs if not run.failure]

    def middle(value: Callable[[Run], float]) -> float:
        return median(map(value, good))

    return Summary(
        cell=cell,
        runs=len(good),
        failures=len(runs) - len(good),
        median_s=middle(lambda run: median(run.times_s)),
        worst_s=max(max(run.times_s) for run in good),
        origin_copies=middle(lambda run: run.origin_bytes / cell.size_bytes),
        cpu_s_per_gb=middle(lambda run: run.cpu_s / (run.received_bytes + run.sent_bytes) * GB),
        send_cpu_s_per_gb=middle(lambda run: run.cpu_by_program_s.get(SERVER, 0.0) / run.sent_bytes * GB),
        machine_cpu=middle(lambda run: run.machine_cpu),
        pss_bytes=middle(lambda run: max(run.pss_bytes, default=0)),
    )
