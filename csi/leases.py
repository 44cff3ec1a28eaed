"""Tells the agent what is mounted, whole, so that its leases are what the kernel says: when either side starts, when a
mount comes or goes (local PersistentVolumes are mounted by the kubelet itself), and now and then.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from cacheagent.api.schema import MountedPath, MountsReport
from cacheagent.errors import CacheAgentError
from cacheagent.threads import in_thread
from csi.mountinfo import CacheDirectory, Mount, read_mounts, watching
from csi.publish import Agent, Places
from csi.target import find_local_volume, find_target

LOG: Final = logging.getLogger(__name__)

SETTLE_S: Final = 0.2
"""Mounts come in groups, a pod's at a time; one report tells of them all. Chosen."""
LOOK_EVERY_S: Final = 1.0
"""How often the agent's socket is looked at: a new one is a new agent. Also the pause after a report that failed."""
REPORT_EVERY_S: Final = 120.0
"""Without news: by a report, leases that were granted and never became a mount are given back. Chosen: a part of
`GRANT_S`."""
GIVE_BACK_S: Final = 5.0
"""How long an unmounted volume's lease is waited for. An agent that is away hears of it by the next report."""


def find_mounted(mounts: Iterable[Mount], cache: CacheDirectory, kubelet: Path) -> tuple[MountedPath, ...]:
    """Our directories that are mounted for pods: by this driver, or by the kubelet for a local PersistentVolume."""
    base = PurePosixPath(kubelet)
    found: dict[str, str] = {}
    for mount in mounts:
        path = cache.find_path(mount)
        if path is None:
            continue
        target = find_target(mount.target, base)
        volume_id = target.volume_id if target else find_local_volume(mount.target, base)
        if volume_id is not None:
            found[volume_id] = path
    return tuple(MountedPath(volume_id=volume_id, path=path) for volume_id, path in sorted(found.items()))


class Leases:
    """Keeps the agent's leases in step with the mounts. For one event loop."""

    def __init__(self, agent: Agent, socket: Path, places: Places) -> None:
        self._agent = agent
        self._socket = socket
        self._places = places
        self._in_turn = asyncio.Lock()
        """A report is what was mounted when its turn came: none that is older than a give-back may arrive after it."""
        self._changed = asyncio.Event()

    async def give_back(self, volume_id: str) -> None:
        """The volume is unmounted: its lease goes. An agent that can't be told now hears of it by the next report."""
        try:
            async with asyncio.timeout(GIVE_BACK_S), self._in_turn:
                await self._agent.remove_volume(volume_id)
        except (CacheAgentError, TimeoutError) as error:
            LOG.warning("a lease is given back later", extra={"volume": volume_id, "reason": str(error)})

    async def run(self) -> None:
        """Report until cancelled."""
        loop = asyncio.get_running_loop()
        clock = loop.time

        def changed() -> None:
            loop.call_soon_threadsafe(self._changed.set)

        with watching(changed):
            told, told_at = "", float("-inf")
            while True:
                agent = _incarnation(self._socket)
                due = self._changed.is_set() or agent != told or clock() > told_at + REPORT_EVERY_S
                if agent and due:
                    self._changed.clear()
                    if await self._report():
                        told, told_at = agent, clock()
                    else:
                        self._changed.set()
                        await asyncio.sleep(LOOK_EVERY_S)
                await self._until_news(LOOK_EVERY_S)

    async def _until_news(self, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE_S)

    async def _report(self) -> bool:
        async with self._in_turn:
            mounts = await in_thread(self._find)
            try:
                await self._agent.mounted(MountsReport(mounts=mounts))
            except CacheAgentError as error:
                LOG.warning("the agent could not be told what is mounted", extra={"reason": str(error)})
                return False
        LOG.debug("told the agent what is mounted", extra={"mounts": len(mounts)})
        return True

    def _find(self) -> tuple[MountedPath, ...]:
        return find_mounted(read_mounts(), self._places.cache, self._places.kubelet)


def _incarnation(socket: Path) -> str:
    """Changes when another agent listens there; empty when none does."""
    try:
        status = os.stat(socket)
    except OSError:
        return ""
    return f"{status.st_ino}-{status.st_ctime_ns}"
