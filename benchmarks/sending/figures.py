"""From runs to figures: one row for each cell, and the bars. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median

import msgspec

from benchmarks.outcome import Figure, Table
from benchmarks.sending.cell import Cell, Run

COLUMNS = (
    "what sends, to how many",
    "link",
    "from",
    "runs",
    "CPU-s/GB sent (range)",
    "of that in the kernel",
    "MB/s to all",
    "CPU-s/GB to receive",
    "CPUs busy",
)
SENDING = "the server process alone, by its control group, from the page cache; the highest of all cells' medians"
LINK = "until all pieces are verified and on the disks of all subscribers; the least of all cells with a shaped link"


def by_cell(runs: Iterable[Run]) -> dict[Cell, list[Run]]:
    """In the order in which they came first."""
    found: defaultdict[Cell, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.cell].append(run)
    return found


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    """Every bar; without the runs it has no value."""
    cells = by_cell(runs)
    for tls, bar in ((False, 0.45), (True, 1.8)):
        costs = [
            _middle(some, _cost)
            for cell, some in cells.items()
            if cell.sends == "product" and not cell.is_cold and cell.tls == tls
        ]
        title = f"CPU to send, {'with TLS' if tls else 'in the clear'}"
        yield Figure(
            title=title, value=max(costs, default=None), bar=bar, is_upper_bound=True, unit="CPU-s/GB", how=SENDING
        )
    for tls in (False, True):
        rates = [rate for cell in cells if cell.tls == tls and (rate := _against_link(cell, cells)) is not None]
        title = f"rate from peer to peer against a plain copy over the same link{', with TLS' if tls else ''}"
        yield Figure(title=title, value=min(rates, default=None), bar=0.95, is_upper_bound=False, unit="x", how=LINK)


def table(runs: Sequence[Run]) -> Table:
    """Every cell."""
    return Table(
        title="Cells, medians", columns=COLUMNS, rows=tuple(_row(cell, some) for cell, some in by_cell(runs).items())
    )


def _against_link(cell: Cell, cells: dict[Cell, list[Run]]) -> float | None:
    if cell.sends != "product" or not cell.rate_bytes_per_s:
        return None
    plain = cells.get(msgspec.structs.replace(cell, sends="plain", tls=False))
    return _middle(cells[cell], _rate) / _middle(plain, _rate) if plain else None


def _row(cell: Cell, runs: Sequence[Run]) -> tuple[str, ...]:
    costs = sorted(run.cpu_s_per_gb for run in runs)
    receiving = _middle(runs, lambda run: run.receiving_cpu_s / run.sent_bytes * 1e9)
    return (
        f"{cell.sends}{', TLS' if cell.tls else ''}, {cell.subscribers}",
        cell.link,
        "disk" if cell.is_cold else "page cache",
        str(len(runs)),
        f"{median(costs):.2f} ({costs[0]:.2f}-{costs[-1]:.2f})",
        f"{_middle(runs, lambda run: run.cpu_system_s / run.sent_bytes * 1e9):.2f}",
        f"{_middle(runs, _rate) / 1e6:.0f}",
        f"{receiving:.2f}" if receiving else "",
        f"{_middle(runs, lambda run: run.machine_cpu):.0%}",
    )


def _middle(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    return median(map(value, runs))


def _cost(run: Run) -> float:
    return run.cpu_s_per_gb


def _rate(run: Run) -> float:
    return run.bytes_per_s
