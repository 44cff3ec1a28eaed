"""What every order of a worker works with, and how it gets at bytes wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self

from cacheagent.location import HttpLocation, PathLocation
from cacheagent.transfer.disk import DirectFile
from cacheagent.transfer.failure import OrderFailed, disk_failure
from cacheagent.transfer.http1 import Connections, HttpBody
from cacheagent.transfer.mounted import MountedRange
from cacheagent.transfer.orders import Report
from cacheagent.transfer.rate import Meter
from cacheagent.transfer.running import Running

BUFFER_BYTES: Final = 4 * 1024 * 1024
"""What is written at once. Measured on ext4: with 2 MiB the kernel's own threads need half as much CPU again; a ring of
smaller ones, or writer threads, gain nothing."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Shared by all threads of one worker."""

    connections: Connections
    meter: Meter
    report: Callable[[Report], None]

    def within(self, cap: int) -> Tools:
        """For an order whose bytes have a cap of their own (0: they have none)."""
        return replace(self, meter=self.meter.within(cap)) if cap else self


class ByteRange(Protocol):
    """One range of a source, read in order. Leaving the block gives up what was not finished."""

    step_bytes: int
    """How much is best received at once and hashed."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def open(self, offset: int, length: int, file_size: int) -> None:
        """Ask for it. Raises OrderFailed."""

    def receive(self, view: memoryview) -> None:
        """Exactly the next `len(view)` bytes. Raises OrderFailed."""

    def finish(self) -> None:
        """All bytes are here and belong to the listed file. Raises OrderFailed."""


def open_range(location: HttpLocation | PathLocation, running: Running, tools: Tools) -> ByteRange:
    """Where the bytes of one range come from."""
    if isinstance(location, HttpLocation):
        return HttpBody(tools.connections, location, running, tools.meter)
    return MountedRange(location, running, tools.meter)


@contextmanager
def open_target(path: str, tools: Tools, *, writable: bool = True) -> Iterator[DirectFile]:
    """Our own file, open for both, or for reading alone as a published blob's mode demands it of its owner too.

    Whatever its disk answers inside the block is the order's failure.
    """
    try:
        with DirectFile(path, writable=writable, on_buffered=tools.meter.count_buffered) as target:
            yield target
    except OSError as error:
        raise disk_failure(error, path) from error
    except EOFError as error:
        raise OrderFailed("disk-fault", str(error)) from error
