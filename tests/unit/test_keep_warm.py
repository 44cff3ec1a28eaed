"""What the configuration wants goes only for something more important, or by order."""

from pathlib import Path

import pytest

from cacheagent.errors import NoRoom
from cacheagent.flights import Flights
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.store import Store
from tests.fakes.memory import MemoryOrigin, MemoryTransport

EXABYTE = 10**18


@pytest.mark.asyncio
async def test_a_model_that_is_kept_warm_is_held(tmp_path: Path) -> None:
    """It can't be freed for its equals, the refusal says so, and what is more important gets its room counted."""
    origin = MemoryOrigin({"weights.bin": b"w" * 100_000})
    store = Store.open(tmp_path / "cache")
    flights = Flights(store, MemoryTransport(origin), lambda _: origin, on_event=lambda _: None)
    spec = ModelSpec(name="llama", kind="tree", source=SourceSpec(uri="memory://a"), priority=5)
    record = await flights.ensure(spec)
    assert store.usage().evictable > 0

    store.keep_warm({record.digest})
    assert store.usage().evictable == 0
    with pytest.raises(NoRoom, match="1 model that is kept warm holds") as caught:
        store.reserve("sha256:" + "0" * 64, {"0" * 64: EXABYTE}, priority=5)
    assert caught.value.hint
    with pytest.raises(NoRoom) as more_important:
        store.reserve("sha256:" + "0" * 64, {"0" * 64: EXABYTE}, priority=6)
    assert "kept warm" not in more_important.value.message
    assert store.record(record.digest) is not None

    store.evict(record.digest)
    assert store.record(record.digest) is None
    assert store.evictions() == {"room": 0, "watermark": 0, "asked": 1}
    await flights.close()
    store.close()
