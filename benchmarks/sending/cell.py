"""What is measured: one cell of the table, and one run of it."""

from __future__ import annotations

from typing import Literal

from cacheagent.model import Value

Sends = Literal["product", "plain"]


class Cell(Value):
    """`sends`: the product's server to the product's subscribers; or a plain loop of sendfile(2) to sockets that are
    read to nowhere, which is what the link and the kernel give. `pieces`: to each, the first ones of the model.
    `rate_bytes_per_s`: of the link; 0: it is not shaped. `is_cold`: the file comes from the disk, not from the page
    cache.
    """

    sends: Sends
    subscribers: int
    pieces: int
    tls: bool = False
    rate_bytes_per_s: float = 0.0
    is_cold: bool = False

    @property
    def link(self) -> str:
        """For people."""
        return f"{self.rate_bytes_per_s / 1e6:g} MB/s" if self.rate_bytes_per_s else "not shaped"

    def __str__(self) -> str:
        how = f"{self.sends}{' with TLS' if self.tls else ''}"
        return f"{how} to {self.subscribers}, link {self.link}, {'cold' if self.is_cold else 'warm'}"


class Run(Value):
    """One run. `sent_bytes`: of the model, to all together. `wall_s`: from the first connection to the last byte that
    the last subscriber had. `cpu_user_s`, `cpu_system_s`: of the sending process alone. `receiving_cpu_s`: of
    the subscribers' processes; 0 where they are threads of the benchmark. `machine_cpu`: part of all CPUs that was
    busy.
    """

    cell: Cell
    at: str
    sent_bytes: int
    wall_s: float
    cpu_user_s: float
    cpu_system_s: float
    receiving_cpu_s: float
    machine_cpu: float

    @property
    def cpu_s_per_gb(self) -> float:
        """Of the sending process."""
        return (self.cpu_user_s + self.cpu_system_s) / self.sent_bytes * 1e9

    @property
    def bytes_per_s(self) -> float:
        """To all together."""
        return self.sent_bytes / self.wall_s
