"""The hub: everybody hears everything they asked for, and nobody holds up the others."""

import asyncio

import pytest

from cacheagent.events import BACKLOG, EventHub
from cacheagent.progress import JobStatus


def state(name: str, fetched: int = 0) -> JobStatus:
    """One state of one job."""
    return JobStatus(name=name, uri=f"s3://bucket/{name}", phase="fetching", bytes_fetched=fetched)


@pytest.mark.asyncio
async def test_listeners_hear_what_they_asked_for_in_order() -> None:
    """One model, or all."""
    hub = EventHub()
    with hub.subscribe() as all_models, hub.subscribe("llama") as one_model:
        assert hub.listeners == 2
        for status in (state("llama", 1), state("other", 2), state("llama", 3)):
            hub.publish(status)
        assert [await all_models.next() for _ in range(3)] == [state("llama", 1), state("other", 2), state("llama", 3)]
        assert [await one_model.next() for _ in range(2)] == [state("llama", 1), state("llama", 3)]
    assert hub.listeners == 0


@pytest.mark.asyncio
async def test_news_wake_a_listener_that_waits() -> None:
    """Nobody polls."""
    hub = EventHub()
    with hub.subscribe() as news:
        waiting = asyncio.create_task(news.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        hub.publish(state("llama"))
        assert await waiting == state("llama")


@pytest.mark.asyncio
async def test_a_listener_that_does_not_read_is_dropped_and_the_others_are_not() -> None:
    """It can still read what it was sent in time, then learns that there is no more."""
    hub = EventHub()
    with hub.subscribe() as slow, hub.subscribe() as quick:
        for n in range(BACKLOG + 10):
            hub.publish(state("llama", n))
            assert await quick.next() == state("llama", n)
        assert slow.ended
        assert not quick.ended
        for n in range(BACKLOG):
            assert await slow.next() == state("llama", n)
        assert await slow.next() is None
        assert await slow.next() is None


@pytest.mark.asyncio
async def test_closing_ends_every_listener() -> None:
    """Also one that waits."""
    hub = EventHub()
    with hub.subscribe() as news:
        waiting = asyncio.create_task(news.next())
        await asyncio.sleep(0)
        hub.close()
        assert await waiting is None
        hub.publish(state("llama"))
        assert await news.next() is None
