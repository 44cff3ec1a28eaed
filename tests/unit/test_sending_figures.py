"""The bars of the sending benchmark, from runs."""

from __future__ import annotations

from benchmarks.sending.cell import Cell, Run
from benchmarks.sending.figures import figures, table


def run(cell: Cell, *, cpu_s: float, wall_s: float) -> Run:
    return Run(
        cell=cell,
        at="2026-01-01T00:00:00Z",
        sent_bytes=10**9,
        wall_s=wall_s,
        cpu_user_s=cpu_s / 4,
        cpu_system_s=cpu_s * 3 / 4,
        receiving_cpu_s=0.5,
        machine_cpu=0.5,
    )


PLAIN = Cell(sends="plain", subscribers=15, pieces=4, rate_bytes_per_s=1e8)
SHAPED = Cell(sends="product", subscribers=15, pieces=4, rate_bytes_per_s=1e8)
FREE = Cell(sends="product", subscribers=1, pieces=8)
COLD = Cell(sends="product", subscribers=1, pieces=8, is_cold=True)
TLS = Cell(sends="product", subscribers=1, pieces=8, tls=True)


def test_bars() -> None:
    """The worst of the cells' medians; what comes from the disk counts for none; the plain copy only as the link."""
    runs = [
        *(run(PLAIN, cpu_s=9.0, wall_s=wall_s) for wall_s in (9.9, 10.0, 10.1)),
        *(run(SHAPED, cpu_s=cpu_s, wall_s=10.4) for cpu_s in (0.3, 0.4, 0.9)),
        run(FREE, cpu_s=0.2, wall_s=1.0),
        run(COLD, cpu_s=0.8, wall_s=1.0),
        run(TLS, cpu_s=1.7, wall_s=3.0),
    ]
    clear, tls, rate, rate_tls = figures(runs)
    assert (clear.value, clear.is_met) == (0.4, True)
    assert (tls.value, tls.is_met) == (1.7, True)
    assert rate.value is not None
    assert round(rate.value, 3) == round(10.0 / 10.4, 3)
    assert rate.is_met
    assert rate_tls.value is None
    assert rate_tls.is_met is None
    assert [row[0] for row in table(runs).rows] == [
        "plain, 15",
        "product, 15",
        "product, 1",
        "product, 1",
        "product, TLS, 1",
    ]


def test_without_runs() -> None:
    """Nothing is met, and nothing is missed."""
    assert [figure.value for figure in figures([])] == [None] * 4
