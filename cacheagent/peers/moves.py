"""Pieces that a member is to let go of: somebody else gets them when it has, and not before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final

from cacheagent.errors import TargetAbandoned

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Move:
    """`let_go` returns when nobody writes the pieces any more, or raises TargetAbandoned; then one of `free` and
    `stuck` is called."""

    pieces: frozenset[int]
    let_go: Callable[[], Awaitable[None]]
    free: Callable[[], None]
    stuck: Callable[[TargetAbandoned], None]


class Moves:
    """All that are under way."""

    def __init__(self) -> None:
        self._moving: dict[asyncio.Task[None], Move] = {}

    def start(self, move: Move) -> None:
        """Begin."""
        task = asyncio.get_running_loop().create_task(_carry_out(move), name="pieces on the move")
        self._moving[task] = move
        task.add_done_callback(self._moving.pop)

    def is_moving(self, piece: int) -> bool:
        """Whether somebody will get it when it is let go of."""
        return any(piece in move.pieces for move in self._moving.values())

    async def settle(self, pieces: Collection[int]) -> None:
        """Until none of these is on the move."""
        while tasks := [task for task, move in self._moving.items() if not move.pieces.isdisjoint(pieces)]:
            await asyncio.wait(tasks)

    def cancel(self) -> None:
        """What they were about is over."""
        for task in tuple(self._moving):
            task.cancel()


async def _carry_out(move: Move) -> None:
    try:
        await move.let_go()
    except TargetAbandoned as error:
        LOG.warning("pieces can't be moved: %s", error.message)
        move.stuck(error)
    else:
        move.free()
