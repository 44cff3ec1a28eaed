"""What is measured: one cell of the table, and one run of it."""

from __future__ import annotations

from typing import Final, Literal, get_args

from cacheagent.cohorts import COHORT
from cacheagent.model import Value

Variant = Literal["direct", "peers", "aria2"]
Scenario = Literal["undisturbed", "killed", "slow", "lying"]
SCENARIOS: Final[tuple[Scenario, ...]] = get_args(Scenario)
Source = Literal["s3", "sha256"]
Tcp = Literal["cubic", "bbr"]


class Cell(Value):
    """`rate_bytes_per_s`: of each node's link, both ways. `origin_links`: the origin's link in links of a node.
    `piece_bytes`: the agent's piece; smaller than the real one, as the model is. `scenario`: `killed`: one member is
    killed with SIGKILL when the others should have half; `slow`: one member's link has a tenth of the rate; `lying`:
    one member sends the first piece of each file in place of all others. `source`: how the agents ask the origin:
    objects with CRCs, of which members spot-check each other, or files with a list of SHA-256, which are hashed whole
    at the end. `tcp`: congestion control of all sides; cubic is Linux's default. `connection_bytes_per_s`: what the
    origin gives one connection, as object storage does; 0: no limit. `cohort`: members of one at most; smaller than the
    real one it makes a tree of few nodes.
    """

    variant: Variant
    nodes: int
    size_bytes: int
    piece_bytes: int
    rate_bytes_per_s: float
    origin_links: float
    scenario: Scenario = "undisturbed"
    source: Source = "s3"
    tcp: Tcp = "cubic"
    connection_bytes_per_s: int = 0
    cohort: int = COHORT

    @property
    def is_tree(self) -> bool:
        """There are several cohorts."""
        return self.nodes > self.cohort

    @property
    def limit_s(self) -> float:
        """What no peer can be faster than: one copy through the origin's link, one through each node's."""
        return self.size_bytes / (self.rate_bytes_per_s * min(1.0, self.origin_links))

    @property
    def is_bound_by_links(self) -> bool:
        """The nodes' own links are what permits no more."""
        return self.origin_links >= 1 and not self.connection_bytes_per_s

    @property
    def origin_rate_bytes_per_s(self) -> float:
        """Of the origin's link."""
        return self.rate_bytes_per_s * self.origin_links

    @property
    def disturbed(self) -> int | None:
        """Index of the node that is killed, slow or lying; its own time does not count."""
        return None if self.scenario == "undisturbed" else self.nodes // 2

    @property
    def tree(self) -> str:
        """As a row names it."""
        return f", cohorts of {self.cohort}" if self.is_tree else ""

    def __str__(self) -> str:
        thin = f", {self.connection_bytes_per_s / 1e6:g} MB/s a connection" if self.connection_bytes_per_s else ""
        return (
            f"{self.variant}, {self.nodes} nodes, {self.size_bytes / 1e6:.0f} MB, "
            f"{self.rate_bytes_per_s / 1e6:g} MB/s, "
            f"origin {self.origin_links:g} links, {self.scenario}, {self.source}, {self.tcp}{thin}{self.tree}"
        )


class Moment(Value):
    """The fleet at one moment: bytes on the wire since the start; of the nodes the sum, the least and the most."""

    at_s: float
    origin_sent: int
    received: int
    least_received: int
    most_received: int


class Run(Value):
    """One run. `times_s`: from the order, which all nodes get at once, to *verified and published*, each node that
    counts. `origin_bytes`: on the wire of the origin's link, headers included. `cpu_s`: of all nodes' process trees;
    `cpu_by_program_s`: of those, by program. `machine_cpu`: part of all CPUs that was busy with anything.
    `received_bytes`, `sent_bytes`: of all nodes, on the wire. `pss_bytes`: the most memory of each node's tree.
    `digest`: of the version; homes and trees hang on it. Empty for what has none, for a run that failed, and in runs
    of before it was kept.
    """

    cell: Cell
    version: str
    at: str
    times_s: tuple[float, ...]
    origin_bytes: int
    received_bytes: int
    sent_bytes: int
    cpu_s: float
    cpu_by_program_s: dict[str, float]
    machine_cpu: float
    pss_bytes: tuple[int, ...]
    moments: tuple[Moment, ...] = ()
    failure: str = ""
    digest: str = ""
