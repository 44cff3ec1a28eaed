"""Keeps some room ready, so that the next model need not wait for an eviction."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from cacheagent.errors import StoreError
from cacheagent.store import Store
from cacheagent.threads import in_thread

LOG: Final = logging.getLogger(__name__)

EVERY_S: Final = 60.0
"""A full disk's worth takes minutes to arrive. Chosen."""


async def keep_trimmed(store: Store) -> None:
    """Look now and then whether the cache is fuller than the high watermark; until cancelled."""
    while True:
        try:
            freed = await in_thread(store.trim)
        except StoreError as error:
            LOG.warning("the cache can't be trimmed: %s", error)
        else:
            if freed:
                LOG.info("the cache was fuller than its high watermark", extra={"freed_bytes": freed})
        await asyncio.sleep(EVERY_S)
