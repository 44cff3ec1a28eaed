"""One run: a fleet comes to rest, is watched at rest, and is warmed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.arena import say
from benchmarks.scale import readings
from benchmarks.scale.agents import Done
from benchmarks.scale.cluster import (
    Agents,
    Controller,
    Users,
    install,
    populate,
    running_agents,
    running_controller,
    until,
)
from benchmarks.scale.figures import Phase, Scale, Start, Traffic
from benchmarks.scale.fleet import WARMED, Size, warmup
from cacheagent.kube.api import MODEL_CACHE_NODES, MODEL_CACHES, MODEL_WARMUPS, NODES, PODS
from cacheagent.kube.client import KubeClient, open_client
from tests.fakes.kube_server import ApiServer

FETCH_S: Final = (20.0, 40.0)
"""How long the stubs pretend to fetch 141 GB: 3.5 to 7 GB/s."""
LOOK_EVERY_S: Final = 0.25
QUIET_S: Final = 20.0
"""Nothing was written for so long: the fleet is at rest. Longer than the agents' reports of progress."""
PATIENCE_S: Final = 1800.0
EMPTY_FOR_S: Final = 5.0
PREFIX: Final = "cacheagent_controller_"


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """All counters at one moment."""

    at: float
    requests: Counter[str]
    received: Counter[str]
    controller_cpu_s: float
    server_cpu_s: float
    done: Done


class Watcher:
    """Looks at a controller several times a second: its memory, and each of its rounds by the difference of a sum."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.rounds_s: list[float] = []
        self.pss_bytes = 0
        self.backlog = 0.0
        self._rounds, self._spent_s = 0.0, 0.0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Once."""
        text = await asyncio.to_thread(self._controller.metrics)
        found = {each.name: each.value for each in readings.parse_metrics(text) if not each.labels}
        rounds = found[f"{PREFIX}plan_duration_seconds_count"]
        spent_s = found[f"{PREFIX}plan_duration_seconds_sum"]
        self.backlog = found[f"{PREFIX}backlog_changes"]
        if new := int(rounds - self._rounds):
            self.rounds_s += [(spent_s - self._spent_s) / new] * new
        self._rounds, self._spent_s = rounds, spent_s
        self.pss_bytes = max(self.pss_bytes, readings.pss_bytes(self._controller.pid))

    def forget(self) -> None:
        """Begin anew."""
        self.rounds_s, self.pss_bytes = [], 0


class Run:
    """One cluster from its first object to its last figure."""

    def __init__(self, server: ApiServer, api: KubeClient, size: Size, folder: Path) -> None:
        self._server = server
        self._api = api
        self._size = size
        self._folder = folder
        self._users = Users(server)
        self._expected = {name: size.nodes_with(number) for number, name in enumerate(size.model_names)}

    async def measure(self) -> Scale:
        """Everything, in order."""
        await install(self._api)
        with running_controller(self._users, self._folder, "empty") as controller:
            await asyncio.sleep(EMPTY_FOR_S)
            empty = (readings.pss_bytes(controller.pid), readings.pss_bytes(self._server.pid))
        await populate(self._api, self._size)
        say(f"  {self._size.nodes} nodes, {self._size.models} models are made")
        async with running_agents(self._users, self._size, FETCH_S) as agents:
            await until(lambda: self._reported(agents), "every agent has reported", PATIENCE_S, 1.0)
            say("  all agents have reported")
            with running_controller(self._users, self._folder, "controller") as controller:
                return await self._measured(controller, agents, empty)

    async def _reported(self, agents: Agents) -> bool:
        ready = (await agents.done()).ready
        return all(ready.get(name) == count for name, count in self._expected.items())

    async def _measured(self, controller: Controller, agents: Agents, empty: tuple[int, int]) -> Scale:
        began = time.monotonic()
        async with self._watched(controller) as watcher:
            await until(lambda: _true(bool(watcher.rounds_s)), "the first plan", PATIENCE_S, 0.05)
            seconds, first_plan_s = time.monotonic() - began, watcher.rounds_s[0]
            await self._at_rest(controller, agents, watcher)
            listed = await self._moment(controller, agents)
            start = Start(
                seconds_to_first_plan=seconds,
                peak_rss_bytes=readings.peak_rss_bytes(controller.pid),
                pss_bytes=readings.pss_bytes(controller.pid),
                listed_bytes=sum(count for name, count in listed.received.items() if name.startswith("list ")),
                first_plan_s=first_plan_s,
            )
            say(f"  {start}")
            rest = await self._rest(controller, agents, watcher)
            warmed, created, known_s = await self._warm(controller, agents, watcher)
            done = await agents.done()
            return Scale(
                nodes=self._size.nodes,
                models=self._size.models,
                pools=self._size.pools,
                fetch_s=FETCH_S,
                object_bytes=await self._object_bytes(),
                empty_pss_bytes=empty[0],
                empty_server_pss_bytes=empty[1],
                start=start,
                rest=rest,
                warmup=warmed,
                assigned_s=tuple(round(at - created, 3) for at in sorted(done.assigned_at[WARMED])),
                ready_s=tuple(round(at - created, 3) for at in sorted(done.ready_at[WARMED])),
                known_ready_s=known_s,
                server_pss_bytes=readings.pss_bytes(self._server.pid),
            )

    async def _rest(self, controller: Controller, agents: Agents, watcher: Watcher) -> Phase:
        watcher.forget()
        before = await self._moment(controller, agents)
        await asyncio.sleep(self._size.rest_s)
        rest = _phase(before, await self._moment(controller, agents), watcher)
        say(f"  at rest for {rest.seconds:.0f} s: {_in_short(rest)}")
        return rest

    async def _warm(self, controller: Controller, agents: Agents, watcher: Watcher) -> tuple[Phase, float, float]:
        """The phase, when the warm-up was created, and after how many seconds its status said that all have it."""
        watcher.forget()
        before, created = await self._moment(controller, agents), time.time()
        body = warmup()
        await self._api.create(MODEL_WARMUPS, body)

        async def is_done() -> bool:
            status = (await self._api.get(MODEL_WARMUPS, body["metadata"]["name"])).get("status") or {}
            return bool((status.get("nodes") or {}).get("ready") == self._size.nodes)

        await until(is_done, "every node is warmed", PATIENCE_S, 1.0)
        known_s = time.time() - created
        await self._at_rest(controller, agents, watcher)
        warmed = _phase(before, await self._moment(controller, agents), watcher)
        say(f"  warmed after {known_s:.0f} s: {_in_short(warmed)}")
        return warmed, created, known_s

    @contextlib.asynccontextmanager
    async def _watched(self, controller: Controller) -> AsyncIterator[Watcher]:
        watcher = Watcher(controller)
        await watcher.look()
        task = asyncio.create_task(watcher.run())
        try:
            yield watcher
            if task.done():
                task.result()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _at_rest(self, controller: Controller, agents: Agents, watcher: Watcher) -> None:
        """Return when nobody has written for a while."""
        last, since = -1, time.monotonic()
        while time.monotonic() < since + QUIET_S or watcher.backlog:
            await asyncio.sleep(1)
            moment = await self._moment(controller, agents)
            writes = _writes(moment.requests) + _writes(moment.done.requests)
            if writes != last:
                last, since = writes, time.monotonic()

    async def _moment(self, controller: Controller, agents: Agents) -> Moment:
        text = await asyncio.to_thread(controller.metrics)
        lines = list(readings.parse_metrics(text))
        return Moment(
            at=time.monotonic(),
            requests=readings.sums(lines, f"{PREFIX}api_requests_total", "verb", "resource"),
            received=readings.sums(lines, f"{PREFIX}api_received_bytes_total", "verb", "resource"),
            controller_cpu_s=readings.cpu_s(controller.pid),
            server_cpu_s=readings.cpu_s(self._server.pid) + readings.cpu_s(self._server.etcd_pid),
            done=await agents.done(),
        )

    async def _object_bytes(self) -> dict[str, int]:
        """The first of each kind, whole, as the API server sends it."""
        found = {}
        for resource in (MODEL_CACHE_NODES, MODEL_CACHES, MODEL_WARMUPS, NODES, PODS):
            item = (await self._api.list(resource)).items[0]
            found[resource.kind] = _size(item)
            found[f"{resource.kind}, managedFields"] = _size(item["metadata"].get("managedFields", []))
            for part in ("spec", "status"):
                found[f"{resource.kind}, {part}"] = _size(item.get(part, {}))
        return found


def _size(value: object) -> int:
    return len(msgspec.json.encode(value))


async def _true(is_so: bool) -> bool:  # noqa: FBT001 - a value
    return is_so


def _writes(requests: dict[str, int]) -> int:
    quiet = ("watch ", "list ", "get ", "replace leases")
    return sum(int(count) for name, count in requests.items() if not name.startswith(quiet))


def _phase(before: Moment, after: Moment, watcher: Watcher) -> Phase:
    return Phase(
        seconds=after.at - before.at,
        controller=Traffic(
            requests=_difference(after.requests, before.requests),
            received_bytes=_difference(after.received, before.received),
            cpu_s=after.controller_cpu_s - before.controller_cpu_s,
        ),
        agents=Traffic(
            requests=_difference(_by_verb(after.done.requests), _by_verb(before.done.requests)),
            received_bytes=_difference(after.done.received_bytes, before.done.received_bytes),
            cpu_s=0.0,
        ),
        rounds_s=tuple(round(each, 4) for each in watcher.rounds_s),
        pss_bytes=watcher.pss_bytes,
        heartbeats=after.done.heartbeats - before.done.heartbeats,
        server_cpu_s=after.server_cpu_s - before.server_cpu_s,
    )


def _by_verb(requests: dict[str, int]) -> dict[str, int]:
    """Without the statuses."""
    found: Counter[str] = Counter()
    for name, count in requests.items():
        found[name.rpartition(" ")[0]] += count
    return found


def _difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: new for name, count in sorted(after.items()) if (new := int(count - before.get(name, 0)))}


def _in_short(phase: Phase) -> str:
    return (
        f"controller {phase.controller.requests}, {phase.controller.watched_bytes / 1e6:.1f} MB by watches, "
        f"{phase.pss_bytes / 1e6:.0f} MB, {phase.controller.cpu_s:.1f} CPU-s, {len(phase.rounds_s)} rounds; "
        f"agents {phase.agents.requests}, {phase.agents.watched_bytes / 1e6:.1f} MB by watches; "
        f"server {phase.server_cpu_s:.0f} CPU-s"
    )


async def measure(server: ApiServer, size: Size, folder: Path) -> Scale:
    """Fill this API server with a fleet and measure it."""
    async with open_client(server.kubeconfig) as api:
        return await Run(server, api, size, folder).measure()
