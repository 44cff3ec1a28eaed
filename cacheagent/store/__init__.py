"""Where bytes rest: one directory on one filesystem. The disk is the database; what is in memory is rebuilt from it."""

from cacheagent.store.boot import Boot
from cacheagent.store.leases import Lease
from cacheagent.store.record import Record, Resolution, content_digest
from cacheagent.store.room import Usage
from cacheagent.store.staging import StagedBlob
from cacheagent.store.state import Reservation, StorePolicy
from cacheagent.store.store import Store
from cacheagent.store.volumes import Promise

__all__ = [
    "Boot",
    "Lease",
    "Promise",
    "Record",
    "Reservation",
    "Resolution",
    "StagedBlob",
    "Store",
    "StorePolicy",
    "Usage",
    "content_digest",
]
