"""What was measured of a fleet, and what follows for a larger one: the formula. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

PROJECTED: Final = 5000
"""Nodes that the table computes figures for."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Between two moments: what was asked of the API server and what it answered. `requests`: by "verb plural";
    `received_bytes` likewise, bodies after decompression. `cpu_s`: of the process."""

    requests: dict[str, int]
    received_bytes: dict[str, int]
    cpu_s: float

    @property
    def watches(self) -> int:
        """Watches that were opened."""
        return sum(count for name, count in self.requests.items() if name.startswith("watch "))

    @property
    def others(self) -> int:
        """Requests that are no watches."""
        return sum(self.requests.values()) - self.watches

    @property
    def watched_bytes(self) -> int:
        """What watches carried."""
        return sum(count for name, count in self.received_bytes.items() if name.startswith("watch "))


class Phase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`rounds_s`: how long each round of planning took. `pss_bytes`: of the controller, the most that was seen.
    `heartbeats`: writes of Nodes' statuses by their kubelets meanwhile. `server_cpu_s`: of API server and etcd."""

    seconds: float
    controller: Traffic
    agents: Traffic
    rounds_s: tuple[float, ...]
    pss_bytes: int
    heartbeats: int
    server_cpu_s: float


class Start(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A controller that starts beside a fleet in order. `listed_bytes`: what its first lists answered."""

    seconds_to_first_plan: float
    peak_rss_bytes: int
    pss_bytes: int
    listed_bytes: int
    first_plan_s: float


class Scale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything. `object_bytes`: of one object as JSON, by what it is. `empty_pss_bytes`: of a controller of an empty
    cluster. `assigned_s`, `ready_s`: from the creation of the warm-up until each node had its order, and until the API
    server knew that it had the model, sorted. `fetch_s`: how long the stubs pretended to fetch, between."""

    nodes: int
    models: int
    fetch_s: tuple[float, float]
    object_bytes: dict[str, int]
    empty_pss_bytes: int
    start: Start
    rest: Phase
    warmup: Phase
    assigned_s: tuple[float, ...]
    ready_s: tuple[float, ...]
    known_ready_s: float
    server_pss_bytes: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table: `constant` + `per_node` x nodes. `bound` says what the formula stands on."""

    title: str
    unit: str
    measured: float
    constant: float
    per_node: float
    bound: str = ""

    def at(self, nodes: int) -> float:
        """For so many nodes."""
        return self.constant + self.per_node * nodes


def rows(scale: Scale) -> Iterator[Row]:
    """The table."""
    rest, warmup, nodes = scale.rest, scale.warmup, scale.nodes
    minutes = rest.seconds / 60

    def constant(title: str, unit: str, value: float, bound: str = "") -> Row:
        return Row(title=title, unit=unit, measured=value, constant=value, per_node=0.0, bound=bound)

    def linear(title: str, unit: str, value: float, bound: str = "", base: float = 0.0) -> Row:
        return Row(title=title, unit=unit, measured=value, constant=base, per_node=(value - base) / nodes, bound=bound)

    per_minute = "requests/min"
    yield constant(
        "at rest: controller, beside watches",
        per_minute,
        rest.controller.others / minutes,
        "the leader renews its lease every 2 s, nothing else",
    )
    yield constant(
        "at rest: controller, watches opened",
        per_minute,
        rest.controller.watches / minutes,
        "9 watches, each for 300-600 s",
    )
    yield linear("at rest: all agents, beside watches", per_minute, rest.agents.others / minutes)
    yield linear(
        "at rest: all agents, watches opened", per_minute, rest.agents.watches / minutes, "one each, for 300-600 s"
    )
    yield linear(
        "at rest: controller's watches carry",
        "kB/min",
        rest.controller.watched_bytes / minutes / 1e3,
        "Nodes, which their kubelets write every 300 s",
    )
    yield constant(
        "at rest: one agent's watch carries",
        "kB/min",
        rest.agents.watched_bytes / nodes / minutes / 1e3,
        "bookmarks",
    )
    yield linear("warm-up: controller's requests", "requests", warmup.controller.others, "two writes a node")
    yield linear("warm-up: all agents' reports", "requests", warmup.agents.others, "order, start, every 15 s, end")
    yield linear("warm-up: controller's watches carry", "MB", warmup.controller.watched_bytes / 1e6)
    yield linear("warm-up: controller's writes are answered with", "MB", answered_bytes(warmup.controller) / 1e6)
    yield constant("warm-up: one agent's watch carries", "kB", warmup.agents.watched_bytes / nodes / 1e3)
    yield constant("warm-up: one agent's reports are answered with", "kB", answered_bytes(warmup.agents) / nodes / 1e3)
    yield linear("warm-up: last node has its order after", "s", scale.assigned_s[-1], "50 writes a second, a setting")
    yield linear("controller's memory (PSS) at rest", "MB", rest.pss_bytes / 1e6, base=scale.empty_pss_bytes / 1e6)
    yield linear(
        "controller's memory (PSS), most in the warm-up", "MB", warmup.pss_bytes / 1e6, base=scale.empty_pss_bytes / 1e6
    )
    yield linear(
        "controller's peak (RSS) while it starts",
        "MB",
        scale.start.peak_rss_bytes / 1e6,
        base=scale.empty_pss_bytes / 1e6,
    )
    yield linear("controller: from start to first plan", "s", scale.start.seconds_to_first_plan)
    yield linear("round of planning, warm-up: p50", "ms", quantile(warmup.rounds_s, 0.5) * 1e3)
    yield linear("round of planning, warm-up: p99", "ms", quantile(warmup.rounds_s, 0.99) * 1e3)
    yield linear("round of planning, warm-up: longest", "ms", max(warmup.rounds_s, default=0.0) * 1e3)
    yield constant("rounds of planning at rest", "rounds/min", len(rest.rounds_s) / minutes)
    yield linear("controller's CPU time at rest", "s/min", rest.controller.cpu_s / minutes)
    yield linear("controller's CPU time, warm-up", "s", warmup.controller.cpu_s)
    yield linear("API server's and etcd's CPU time, warm-up", "s", warmup.server_cpu_s)
    yield linear("API server's memory (PSS)", "MB", scale.server_pss_bytes / 1e6)


def answered_bytes(traffic: Traffic) -> int:
    """What was read of answers to requests that are no watches."""
    return sum(traffic.received_bytes.values()) - traffic.watched_bytes


def quantile(values: tuple[float, ...], part: float) -> float:
    """The smallest value that is not below this part of all; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
