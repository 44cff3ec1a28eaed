"""Publishing a volume, in the order that keeps running pods running: what is mounted already needs nobody's leave."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

import msgspec

from cacheagent.api.schema import Done, Model, MountsReport, MountTimes, Volume, VolumeRequest
from cacheagent.errors import AgentUnavailable, CacheAgentError, NoRoom
from cacheagent.threads import in_thread
from csi import mount
from csi.errors import MountFailed, NotReady
from csi.holds import Holds
from csi.mountinfo import CacheDirectory, Mount, find_top, read_mounts
from csi.names import OPTIONS
from csi.target import Target
from csi.validate import Order, check_answer, is_right_source

LOG: Final = logging.getLogger(__name__)

LONGEST_HOLD_S: Final = 110.0
"""The kubelet cancels at 120 s (csiTimeout), and an answer in time tells more than a cancelled call."""
ANSWER_MARGIN_S: Final = 5.0
"""What is left of the caller's deadline for the way back. Chosen."""
AGENT_PATIENCE_S: Final = 15.0
"""How long an agent that doesn't answer is waited for inside a hold: it restarts in 1-2 s, and each refusal doubles the
kubelet's pause. Chosen."""
AGENT_PAUSE_S: Final = 0.5
MOST_MOUNTS: Final = 100
"""Taken away from one target at most. Chosen: this driver never mounts on what is mounted already."""


class Agent(Protocol):
    """What is asked of the node's agent; `cacheagent.api.client.AgentClient` says what each raises."""

    async def volume(self, volume_id: str, request: VolumeRequest) -> Volume: ...
    async def mount_took(self, volume_id: str, times: MountTimes) -> Done: ...
    async def remove_volume(self, volume_id: str) -> Done: ...
    async def mounted(self, report: MountsReport) -> Done: ...
    async def model(self, ref: str) -> Model: ...


class Places(NamedTuple):
    """`root`: the cache directory as this process sees it; `cache`: what it is in mountinfo; `kubelet`: the kubelet's
    directory, without symbolic links."""

    root: Path
    cache: CacheDirectory
    kubelet: Path


class Publisher:
    """Mounts and unmounts volumes. For one event loop; calls for the same volume are put in order."""

    def __init__(self, places: Places, agent: Agent, holds: Holds, give_back: Callable[[str], Awaitable[None]]) -> None:
        self._places = places
        self._agent = agent
        self._holds = holds
        self._give_back = give_back
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._telling: set[asyncio.Task[None]] = set()

    async def publish(self, order: Order, time_left_s: float | None) -> None:
        """Returns when the volume is mounted. `time_left_s`: until the caller gives up.

        Raises NotReady (ask again), what the agent raises, WrongAnswer, MountFailed. Cancelling while it waits changes
        nothing; cancelling while it mounts is delivered when that is complete.
        """
        if await in_thread(partial(self._is_mounted, order)):
            return
        await self._holds.wait(order.volume_id, self._ask_and_mount(order, time_left_s))

    async def unpublish(self, target: Target) -> None:
        """Returns when nothing is mounted there; something that isn't is fine. Raises MountFailed."""
        self._holds.interrupt(target.volume_id)
        async with self._lock(target.volume_id):
            await in_thread(partial(self._unmount, target))
        LOG.info("unmounted", extra={"volume": target.volume_id, "pod_uid": target.pod_uid})
        await self._give_back(target.volume_id)

    async def _ask_and_mount(self, order: Order, time_left_s: float | None) -> None:
        try:
            volume = await self._ask(order, time_left_s)
        except (AgentUnavailable, NoRoom):
            # The kubelet takes the volume for half mounted now (csi.statuses), and would not let its pod go while one
            # is held; a call that is refused at once ends that.
            self._holds.forget(order.volume_id)
            raise
        if volume.state != "ready":
            raise NotReady(volume.message or "the model is not on this node yet")
        parts = check_answer(volume, order)
        began_at = time.time()
        async with self._lock(order.volume_id):
            await in_thread(partial(self._mount, order, parts))
        if volume.traced:
            self._tell_times(order, volume.digest, began_at)
        LOG.info("mounted", extra={"volume": order.volume_id, "path": volume.path, **_pod(order.request)})

    def _tell_times(self, order: Order, digest: str, began_at: float) -> None:
        """Beside the answer to the kubelet, which it must not hold up."""
        request = order.request
        times = MountTimes(
            pod_uid=request.pod_uid,
            began_at=began_at,
            ended_at=max(began_at, time.time()),
            namespace=request.namespace,
            pod=request.pod,
            digest=digest,
        )

        async def tell() -> None:
            try:
                await self._agent.mount_took(order.volume_id, times)
            except CacheAgentError as error:
                LOG.debug("the agent was not told when it was mounted", extra={"reason": str(error)})

        telling = asyncio.create_task(tell(), name=f"times of {order.volume_id}")
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _ask(self, order: Order, time_left_s: float | None) -> Volume:
        """The first question is answered at once, so that the pod's events tell the story from the first second; later
        ones are held as long as the caller has time."""
        clock = asyncio.get_running_loop().time
        left_s = LONGEST_HOLD_S if time_left_s is None else time_left_s - ANSWER_MARGIN_S
        hold_s = 0.0 if self._holds.first(order.volume_id) else max(0.0, min(LONGEST_HOLD_S, left_s))
        end = clock() + hold_s
        patience_end = min(end, clock() + AGENT_PATIENCE_S)
        while True:
            request = msgspec.structs.replace(order.request, wait_s=max(0.0, end - clock()))
            asked_at = clock()
            try:
                return await self._agent.volume(order.volume_id, request)
            except AgentUnavailable:
                if clock() - asked_at > AGENT_PATIENCE_S:  # it was there until now: it restarts
                    patience_end = min(end, clock() + AGENT_PATIENCE_S)
                if clock() + AGENT_PAUSE_S > patience_end:
                    raise
            await asyncio.sleep(AGENT_PAUSE_S)

    def _lock(self, volume_id: str) -> asyncio.Lock:
        return self._locks.setdefault(volume_id, asyncio.Lock())

    def _is_mounted(self, order: Order) -> bool:
        top = find_top(read_mounts(), self._place(order.target))
        return top is not None and self._is_right(top, order)

    def _is_right(self, found: Mount, order: Order) -> bool:
        path = self._places.cache.find_path(found)
        return path is not None and found.options >= OPTIONS and is_right_source(path, order)

    def _mount(self, order: Order, parts: tuple[str, ...]) -> None:
        if self._is_mounted(order):
            return
        try:
            with (
                mount.opened_beneath(self._places.root, parts) as source,
                mount.opened_beneath(self._places.kubelet, order.target.parent) as parent,
            ):
                if (found := find_top(read_mounts(), self._place(order.target))) is not None:
                    LOG.warning("something else was mounted there", extra={"target": found.target, "path": found.root})
                    self._clear(order.target, parent)
                mount.make_target(parent, order.target.name)
                mount.attach(source, parent, order.target.name)
        except OSError as error:
            self._forget_target(order.target)
            raise MountFailed(
                f"{'/'.join(parts)} can't be mounted on {self._place(order.target)}: {error.strerror}",
                hint="the CSI container's log and docs/csi.md say more",
            ) from error
        if not self._is_mounted(order):
            raise MountFailed(
                f"{self._place(order.target)} is not what was mounted there", hint="report it with the log"
            )

    def _forget_target(self, target: Target) -> None:
        """After a failure: the directory goes if it is empty and nothing is mounted on it."""
        try:
            with mount.opened_beneath(self._places.kubelet, target.parent) as parent:
                mount.remove_target(parent, target.name)
        except OSError as error:
            LOG.debug("the target stays", extra={"target": self._place(target), "reason": error.strerror})

    def _unmount(self, target: Target) -> None:
        try:
            with mount.opened_beneath(self._places.kubelet, target.parent) as parent:
                self._clear(target, parent)
                mount.remove_target(parent, target.name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise MountFailed(
                f"{self._place(target)} can't be unmounted and removed: {error.strerror}",
                hint="the kubelet tries again; what lies in it is never deleted by this driver",
            ) from error

    def _clear(self, target: Target, parent: int) -> None:
        """Nothing is mounted there any more. What a running container has mounted is a mount of its own and stays.
        Raises MountFailed, OSError."""
        place, refused = self._place(target), -1
        for _ in range(MOST_MOUNTS):
            top = find_top(read_mounts(), place)
            if top is None:
                return
            if top.id == refused:
                raise MountFailed(
                    f"{place}: mount {top.id} of {top.root} is listed there, but the kernel finds nothing to unmount",
                    hint="something else covers it: see `findmnt` on the node for it and the directories above it",
                )
            try:
                mount.detach(parent, target.name)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                refused = top.id  # somebody else was faster, or it can't be reached
        raise MountFailed(
            f"{place}: something is still mounted there after {MOST_MOUNTS} were taken away",
            hint="somebody mounts there again and again: see `findmnt` on the node",
        )

    def _place(self, target: Target) -> str:
        return f"{self._places.kubelet}/{'/'.join(target.parts)}"


def _pod(request: VolumeRequest) -> dict[str, str]:
    named = {"namespace": request.namespace, "pod": request.pod, "pod_uid": request.pod_uid}
    return {key: value for key, value in named.items() if value}
