"""A pull as a person watches it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from cacheagent.cli.output import duration, size
from cacheagent.cli.watching import Words
from cacheagent.progress import JobStatus

if TYPE_CHECKING:
    from rich.progress import TaskID

LINE_INTERVAL_S: Final = 5.0
"""A log of a long pull stays readable. Chosen."""


def describe(status: JobStatus) -> str:
    """One line that says where a job is."""
    match status.phase:
        case "ready":
            return f"{status.name}: ready in {duration(status.elapsed_s)}: {_sources(status)}"
        case "failed":
            return f"{status.name}: failed: {status.message}"
        case "fetching":
            share = status.bytes_done / status.bytes_total if status.bytes_total else 0.0
            left = f", about {duration(status.eta_s)} left" if status.eta_s >= 0 else ""
            return (
                f"{status.name}: {share:.0%}, {size(status.bytes_done)} of {size(status.bytes_total)}, "
                f"{size(status.rate_bytes_per_s)}/s{left}"
            )
        case phase:
            return f"{status.name}: {phase}"


def _sources(status: JobStatus) -> str:
    parts = [f"{size(status.bytes_fetched)} fetched at {size(status.rate_bytes_per_s)}/s"]
    if status.bytes_kept:
        parts.append(f"{size(status.bytes_kept)} kept from an earlier try")
    if status.bytes_linked:
        parts.append(f"{size(status.bytes_linked)} already here")
    return ", ".join(parts)


class _Bar:
    def __init__(self) -> None:
        # Imported late: a pipe does without it.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, status: JobStatus, /) -> None:
        if self._task is None:
            self._task = self._progress.add_task(status.name, total=None, text="")
        fetching = status.phase in {"fetching", "publishing"}
        self._progress.update(
            self._task,
            total=status.bytes_total if fetching else None,
            completed=status.bytes_done,
            text=describe(status).removeprefix(f"{status.name}: "),
        )


PULL: Final[Words[JobStatus]] = Words(
    line=lambda status: "" if status.finished else describe(status),
    mark=lambda status: status.phase,
    interval_s=LINE_INTERVAL_S,
    event=lambda status: status,
    live=_Bar,
)
"""How it ended is the command's to say."""
