"""What was measured of a fleet, and what follows for a larger one: the formula. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
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
    """Everything.

    `object_bytes`: of one object as JSON, by what it is. `empty_pss_bytes`, `empty_server_pss_bytes`: of a controller
    of an empty cluster, and of its API server. `assigned_s`, `ready_s`: from the creation of the warm-up until each
    node had its order, and until the API server had its report that it has the model, sorted. `known_ready_s`: until
    the ModelWarmup said so of all. `fetch_s`: how long the stubs pretended to fetch, between.
    """

    nodes: int
    models: int
    pools: int = 1
    fetch_s: tuple[float, float]
    object_bytes: dict[str, int]
    empty_pss_bytes: int
    empty_server_pss_bytes: int = 0
    start: Start
    rest: Phase
    warmup: Phase
    assigned_s: tuple[float, ...]
    ready_s: tuple[float, ...]
    known_ready_s: float
    server_pss_bytes: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table: `constant` + `per_node` x nodes. `because` says why."""

    title: str
    unit: str
    measured: float
    constant: float
    per_node: float
    because: str = ""

    def at(self, nodes: int) -> float:
        """For so many nodes."""
        return self.constant + self.per_node * nodes


WATCH_S: Final = (300 + 600) / 2
"""How long a watch lasts, in the mean; see `cacheagent.kube.client.WATCH_S`."""
CONTROLLER_WATCHES: Final = 10
AGENT_WATCHES: Final = 2
"""Its object, and the lists of peers that it is on."""


def rows(scale: Scale) -> Iterator[Row]:
    """The table."""
    yield from _rest(scale)
    yield from _warmup(scale)
    yield from _controller(scale)


def _constant(title: str, unit: str, value: float, because: str = "") -> Row:
    return Row(title=title, unit=unit, measured=value, constant=value, per_node=0.0, because=because)


def _linear(nodes: int, title: str, unit: str, value: float, because: str = "", base: float = 0.0) -> Row:
    slope = (value - base) / nodes
    return Row(title=title, unit=unit, measured=value, constant=base, per_node=slope, because=because)


def _rest(scale: Scale) -> Iterator[Row]:
    rest, minutes, linear = scale.rest, scale.rest.seconds / 60, partial(_linear, scale.nodes)
    unit, again = "requests/min", 60 / WATCH_S
    beside = rest.controller.others / minutes
    yield _constant("at rest: controller, beside watches", unit, beside, "the lease, every 2 s, and nothing else")
    yield linear("at rest: all agents, beside watches", unit, rest.agents.others / minutes)
    yield Row(
        title="at rest: controller's watches begun again",
        unit=unit,
        measured=rest.controller.watches / minutes,
        constant=CONTROLLER_WATCHES * again,
        per_node=0.0,
        because="10 watches, each for 300 to 600 s",
    )
    yield Row(
        title="at rest: agents' watches begun again",
        unit=unit,
        measured=rest.agents.watches / minutes,
        constant=0.0,
        per_node=AGENT_WATCHES * again,
        because="two each, for 300 to 600 s",
    )
    carried = rest.controller.watched_bytes / minutes / 1e3
    yield linear("at rest: controller's watches carry", "kB/min", carried, "Nodes: kubelets write them every 300 s")
    carried = rest.agents.watched_bytes / scale.nodes / minutes / 1e3
    yield _constant("at rest: one agent's watch carries", "kB/min", carried, "bookmarks")


def _warmup(scale: Scale) -> Iterator[Row]:
    warmup, nodes, linear = scale.warmup, scale.nodes, partial(_linear, scale.nodes)
    asked = warmup.controller.requests
    writes = sum(asked.get(name, 0) for name in ("patch modelcachenodes", "patch nodes"))
    news = sum(count for name, count in asked.items() if "modelcaches" in name or "modelwarmups" in name)
    yield linear("warm-up: controller's writes to nodes", "requests", writes, "the order, the Node's labels")
    yield _constant(
        "warm-up: controller's news for people", "requests/min", news / warmup.seconds * 60, "at most one in 5 s each"
    )
    yield linear("warm-up: all agents' reports", "requests", warmup.agents.others, "order, start, every 15 s, end")
    carried, answered = warmup.controller.watched_bytes / 1e6, answered_bytes(warmup.controller) / 1e6
    yield linear("warm-up: controller's watches carry", "MB", carried, "each write brings the whole object")
    yield linear("warm-up: controller's writes are answered with", "MB", answered, "the whole object")
    yield _constant("warm-up: one agent's watch carries", "kB", warmup.agents.watched_bytes / nodes / 1e3)
    yield _constant("warm-up: one agent's reports are answered with", "kB", answered_bytes(warmup.agents) / nodes / 1e3)
    yield linear("warm-up: first half has its orders after", "s", quantile(scale.assigned_s, 0.5))
    yield linear("warm-up: last node has its order after", "s", scale.assigned_s[-1], "at most 50 writes/s, a setting")
    yield linear("warm-up: last node is ready after", "s", scale.ready_s[-1], f"the stubs fetch for {_span(scale)}")
    yield linear("warm-up: the ModelWarmup says so after", "s", scale.known_ready_s)
    yield linear("warm-up: CPU time of API server and etcd", "s", warmup.server_cpu_s)
    memory = (scale.server_pss_bytes / 1e6, "the constant is an empty cluster's", scale.empty_server_pss_bytes / 1e6)
    yield linear("API server's memory (PSS) after it", "MB", *memory)


def _controller(scale: Scale) -> Iterator[Row]:
    rest, warmup, start, linear = scale.rest, scale.warmup, scale.start, partial(_linear, scale.nodes)
    empty = scale.empty_pss_bytes / 1e6
    based = "the constant is a controller of an empty cluster"
    yield linear("controller: memory (PSS) at rest", "MB", rest.pss_bytes / 1e6, based, empty)
    yield linear("controller: memory (PSS), most in the warm-up", "MB", warmup.pss_bytes / 1e6, based, empty)
    yield linear("controller: most memory (RSS) while it starts", "MB", start.peak_rss_bytes / 1e6, "", empty)
    yield linear("controller: its first lists answer", "MB", start.listed_bytes / 1e6)
    yield linear("controller: from its start to its first plan", "s", start.seconds_to_first_plan)
    yield _constant("controller: rounds at rest", "rounds/min", len(rest.rounds_s) / rest.seconds * 60)
    for title, part in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0)):
        yield linear(f"controller: a round in the warm-up, {title}", "ms", quantile(warmup.rounds_s, part) * 1e3)
    yield linear("controller: CPU time at rest", "s/min", rest.controller.cpu_s / rest.seconds * 60)
    yield linear("controller: CPU time, warm-up", "s", warmup.controller.cpu_s)


def _span(scale: Scale) -> str:
    return f"{scale.fetch_s[0]:.0f} to {scale.fetch_s[1]:.0f} s"


def answered_bytes(traffic: Traffic) -> int:
    """What was read of answers to requests that are no watches."""
    return sum(traffic.received_bytes.values()) - traffic.watched_bytes


def quantile(values: tuple[float, ...], part: float) -> float:
    """The smallest value that is not below this part of all; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
