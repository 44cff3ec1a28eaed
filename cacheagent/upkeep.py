"""What the agent does for its disk without being asked. A disk that fails ends none of it: it may come back."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from cacheagent.errors import StoreError
from cacheagent.scrub import Scrub
from cacheagent.store import Store
from cacheagent.threads import in_thread

LOG: Final = logging.getLogger(__name__)

EVERY_S: Final = 60.0
"""Between two trims (a full disk's worth takes minutes to arrive), and after a failure of the disk. Chosen."""


async def keep_trimmed(store: Store) -> None:
    """Evict in time, so that the next model need not wait for it; until cancelled."""
    while True:
        try:
            freed = await in_thread(store.trim)
        except StoreError as error:
            LOG.warning("the cache can't be trimmed: %s", error)
        else:
            if freed:
                LOG.info("the cache was fuller than its high watermark", extra={"freed_bytes": freed})
        await asyncio.sleep(EVERY_S)


async def keep_scrubbed(scrub: Scrub) -> None:
    """Read everything again from time to time and mend what went bad; until cancelled."""
    while True:
        try:
            await scrub.run()
        except StoreError as error:
            LOG.warning("the scrub begins again in a while: %s", error)
        await asyncio.sleep(EVERY_S)
