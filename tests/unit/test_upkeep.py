"""Trimming and scrubbing go on, whatever the disk says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from cacheagent import upkeep
from cacheagent.errors import DiskFault
from cacheagent.scrub import Scrub
from cacheagent.store import Store
from cacheagent.upkeep import keep_scrubbed, keep_trimmed

Upkeep = Callable[[Any], Coroutine[Any, Any, None]]


class FailsOnce:
    """A store and a scrub whose disk fails at the first try."""

    def __init__(self) -> None:
        self.tries = 0

    def trim(self) -> int:
        self.tries += 1
        if self.tries == 1:
            raise DiskFault("EIO")
        return 7

    async def run(self) -> None:
        self.tries += 1
        if self.tries == 1:
            raise DiskFault("EIO")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda disk: keep_trimmed(cast(Store, disk)), ["the cache can't be trimmed: EIO", "the cache was fuller"]),
        (lambda disk: keep_scrubbed(cast(Scrub, disk)), ["the scrub begins again in a while: EIO"]),
    ],
)
async def test_a_disk_that_fails_is_told_of_and_tried_again(
    work: Upkeep, said: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The root task does not end: the agent would with it."""
    caplog.set_level(logging.INFO, "cacheagent.upkeep")
    monkeypatch.setattr(upkeep, "EVERY_S", 0)
    disk = FailsOnce()
    running = asyncio.create_task(work(disk))
    async with asyncio.timeout(60):
        while disk.tries < 3:  # noqa: ASYNC110 - nobody tells of a trim
            await asyncio.sleep(0.001)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    messages = [record.getMessage() for record in caplog.records if record.name == "cacheagent.upkeep"]
    assert all(message.startswith(start) for message, start in zip(messages, said, strict=False))
    assert len(messages) >= len(said)
