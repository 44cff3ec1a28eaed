"""Calls of the kubelet that are held while weights travel, and how they are let go early."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from csi.errors import NotReady

REMEMBERED: Final = 10_000
"""How many volumes that were asked for are remembered; one that is forgotten gets one more answer at once. Chosen: far
more than a node has pods; those that are deleted while they wait are never unpublished."""

T = TypeVar("T")


class Holds:
    """Who waits for what. For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Task[Any]]] = {}
        self._asked: OrderedDict[str, None] = OrderedDict()
        self._stopping = False

    def first(self, volume_id: str) -> bool:
        """Whether this process is asked for the volume for the first time since it was last unpublished."""
        known = volume_id in self._asked
        self._asked[volume_id] = None
        self._asked.move_to_end(volume_id)
        while len(self._asked) > REMEMBERED:
            self._asked.popitem(last=False)
        return not known

    def forget(self, volume_id: str) -> None:
        """The next question is answered at once again."""
        self._asked.pop(volume_id, None)

    async def wait(self, volume_id: str, asking: Coroutine[Any, Any, T]) -> T:
        """The result of `asking`. Raises what it raises, and NotReady if the volume is unpublished or the driver stops
        meanwhile. Cancelling cancels it, and is delivered when it has ended."""
        if self._stopping:
            asking.close()
            raise _stopping()
        task = asyncio.create_task(asking)
        self._waiting.setdefault(volume_id, set()).add(task)
        try:
            await asyncio.wait({task})
            if not task.cancelled():
                return task.result()
        except asyncio.CancelledError:  # the kubelet has given this call up
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        finally:
            self._waiting[volume_id].discard(task)
            if not self._waiting[volume_id]:
                del self._waiting[volume_id]
        if self._stopping:
            raise _stopping()
        raise NotReady("the volume was unpublished meanwhile")

    def interrupt(self, volume_id: str) -> None:
        """The volume is unpublished: nobody may mount it on the strength of an older question."""
        self.forget(volume_id)
        for task in self._waiting.get(volume_id, ()):
            task.cancel()

    def stop(self) -> None:
        """Let everybody go, and hold nobody from now on."""
        self._stopping = True
        for tasks in self._waiting.values():
            for task in tasks:
                task.cancel()


def _stopping() -> NotReady:
    return NotReady("the CSI driver of this node is restarting; the download goes on, and the kubelet asks again")
