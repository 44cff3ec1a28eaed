"""The controller's loop: whenever something changed, or a time has come, plan everything anew and have the differences
written.

It asks the API server for nothing while nothing changes: mirrors tell it of changes, and the plan of the next deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, Protocol

from cacheagent.kube.api import KubeApi, KubeError, Object
from cacheagent.kube.copies import Copies
from cacheagent.kube.metrics import ControllerMetrics
from cacheagent.kube.plan import Change, Memory, Note, Plan, PlanSettings, plan
from cacheagent.kube.plan.changes import Key
from cacheagent.kube.plan.views import Pod
from cacheagent.kube.plan.world import IN_USE_FOR_S, InUse
from cacheagent.kube.writer import Writer
from cacheagent.threads import in_thread

LOG: Final = logging.getLogger(__name__)

GATHER_S: Final = 0.05
"""Changes come in flocks; so long is waited for more of them before a round. Chosen."""
REST: Final = 2.0
"""After a round, this many times its own length is rested, so that planning never takes more than a third of a CPU."""
AFTER_DEFECT_S: Final = 5.0
"""A plan that failed is made again after this: by then the object that it stumbled over may be another."""
NOTICE_AGAIN_S: Final = 30.0
"""How soon an object is told something else about the same matter though nothing was decided (progress at a gate)."""


class EventSink(Protocol):
    """Where events for people go; see `cacheagent.kube.events.Events`."""

    def post(self, about: Object, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:  # noqa: A002
        """Have it said soon."""


class Controller:
    """`run` plans while `lead(True)` was the last word. `on_starts`: told of pods that got their weights. `clock`:
    seconds since the epoch."""

    def __init__(  # noqa: PLR0913 - a composition root hands in its parts
        self,
        api: KubeApi,
        copies: Copies,
        settings: PlanSettings,
        *,
        is_leader: Callable[[], bool],
        events: EventSink,
        metrics: ControllerMetrics,
        on_starts: Callable[[Iterable[Pod]], None] = lambda _: None,
        writes_per_second: float = 50.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._copies = copies
        self._settings = settings
        self._is_leader = is_leader
        self._events = events
        self._metrics = metrics
        self._on_starts = on_starts
        self._clock = clock
        self._memory = Memory()
        self._in_use: dict[InUse, float] = {}
        self._done: set[Key] = set()
        """What was written since the last plan was begun."""
        self._told: dict[tuple[str, str], tuple[str, float]] = {}
        self._leads = is_leader()
        self.writer = Writer(api, self, may_write=is_leader, per_second=writes_per_second)
        self.rounds = 0
        """How often everything was planned; for tests and people."""

    def lead(self, leads: bool) -> None:  # noqa: FBT001 - the leader's own signature
        """This replica begins or ends to lead. Called from the event loop."""
        self._leads = leads
        self._memory, self._in_use, self._told = Memory(), {}, {}
        self._metrics.lead()
        if not leads:
            self.writer.want(())
        self._copies.changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        await self._copies.synced()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.writer.run(), name="writing")
            group.create_task(self._plan_for_ever(), name="planning")

    async def _plan_for_ever(self) -> None:
        while True:
            self._copies.changed.clear()
            if not (self._leads and self._is_leader()):
                await self._copies.changed.wait()
                continue
            began = time.monotonic()
            try:
                planned = await self._round()
            except Exception:
                # The webhook of this process must go on: without it no pod with an annotation can be made.
                LOG.exception("a defect in the plan; nothing is written until it is planned again")
                await asyncio.sleep(AFTER_DEFECT_S)
                continue
            took_s = time.monotonic() - began
            await asyncio.sleep(max(GATHER_S, took_s * REST))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s(planned.deadline)):
                    await self._copies.changed.wait()
            await asyncio.sleep(GATHER_S)

    def _pause_s(self, deadline: float) -> float | None:
        """asyncio's clock and ours may drift apart, so a far deadline is looked at once an hour."""
        return None if deadline == float("inf") else min(3600.0, max(0.0, deadline - self._clock()))

    async def _round(self) -> Plan:
        """One plan. In a thread, so that the webhook of this process goes on answering."""
        now = self._clock()
        memory = replace(self._memory, in_use={**self._memory.in_use, **self._in_use})
        self._in_use, self._done = {}, set()
        began = time.monotonic()
        world = self._copies.world(self._settings, memory)
        planned = await in_thread(partial(plan, world, now))
        self._metrics.planned(time.monotonic() - began, len(planned.changes))
        self.rounds += 1
        if self._leads and self._is_leader():
            self._memory = planned.memory
            # What was done while this was planned is not in it; whatever was done has everything planned again.
            self.writer.want(change for change in planned.changes if change.key not in self._done)
            self._notice(planned.notices)
            self._on_starts(self._metrics.follow(world))
        return planned

    # --- what the writer tells

    def written(self, change: Change, item: Object | None) -> None:
        """See `writer.Listener`."""
        self._metrics.wrote(change, "done")
        self._done.add(change.key)
        if item is None:
            self._copies.deleted(change.resource, change.name, change.namespace)
        else:
            self._copies.wrote(change.resource, item)
        self._tell(change.notes)

    def found_in_use(self, what: frozenset[InUse]) -> None:
        """See `writer.Listener`."""
        self._in_use.update(dict.fromkeys(what, self._clock() + IN_USE_FOR_S))
        self._copies.changed.set()

    def failed(self, change: Change, error: KubeError) -> None:
        """See `writer.Listener`."""
        self._metrics.wrote(change, error.code)
        self._copies.changed.set()

    # --- what people are told

    def _tell(self, notes: Iterable[Note]) -> None:
        for note in notes:
            self._events.post(_about(note), note.type, note.reason, note.message)

    def _notice(self, notes: Iterable[Note]) -> None:
        """Of what is noticed in every round, only what is new, and not too often."""
        now, told = self._clock(), {}
        for note in notes:
            key = (note.regarding.uid, note.reason)
            before = self._told.get(key)
            if before is not None and (before[0] == note.message or now < before[1] + NOTICE_AGAIN_S):
                told[key] = before
                continue
            told[key] = (note.message, now)
            self._tell([note])
        self._told = told


def _about(note: Note) -> dict[str, Any]:
    resource, name, namespace, uid = note.regarding
    metadata = {"name": name, "uid": uid, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
