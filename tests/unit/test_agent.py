"""The parts of the composition root that a running agent does not show: a root task that ends, a disk that goes bad."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from cacheagent import disk_watch
from cacheagent.disk_watch import HUNG_AFTER_S, DiskWatch
from cacheagent.errors import RootTaskEnded
from cacheagent.logs import JobLog
from cacheagent.progress import JobStatus
from cacheagent.running import until_stopped


async def _forever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def _raise() -> None:
    await asyncio.sleep(0)
    raise RuntimeError("boom")


async def _return() -> None:
    await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_root_tasks_run_until_the_order_to_stop() -> None:
    """All of them are cancelled, and waited for."""
    ended: list[str] = []
    stop = asyncio.Event()
    running = asyncio.create_task(until_stopped({"a": _forever(ended, "a"), "b": _forever(ended, "b")}, stop))
    await asyncio.sleep(0)
    assert not running.done()
    stop.set()
    await running
    assert sorted(ended) == ["a", "b"]


@pytest.mark.asyncio
async def test_a_root_task_that_ends_stops_everything_and_is_named() -> None:
    """Whether it raises or returns: an agent that runs without one of its parts would be a lie."""
    for work, reason in ((_raise, r"RuntimeError\('boom'\)"), (_return, "it returned")):
        ended: list[str] = []
        with pytest.raises(RootTaskEnded, match=f"the agent stopped because scrubbing ended: {reason}") as caught:
            await until_stopped({"scrubbing": work(), "other": _forever(ended, "other")}, asyncio.Event())
        assert ended == ["other"]
        assert caught.value.hint
        assert caught.value.exit_code == 1


@pytest.mark.asyncio
async def test_a_disk_is_judged_by_writing(tmp_path: Path) -> None:
    """Good, gone, good again; and nothing is left behind."""
    cache = tmp_path / "cache"
    cache.mkdir()
    watch = DiskWatch(cache)
    await watch.probe()
    assert watch.check() == ""
    assert list(cache.iterdir()) == []
    cache.rename(tmp_path / "away")
    await watch.probe()
    assert watch.check() == f"{cache} can't be written: No such file or directory"
    (tmp_path / "away").rename(cache)
    await watch.probe()
    assert watch.check() == ""


@pytest.mark.asyncio
async def test_a_disk_that_does_not_answer_is_told_of_without_waiting_for_it(tmp_path: Path) -> None:
    """The probe returns at once, whatever the disk does."""
    now = 0.0
    watch = DiskWatch(tmp_path, now=lambda: now)
    now = HUNG_AFTER_S
    assert watch.check() == ""
    now = HUNG_AFTER_S + 1
    assert watch.check() == f"{tmp_path}: no write has ended for 31 s"
    await watch.probe()
    assert watch.check() == ""


@pytest.mark.asyncio
async def test_the_disk_is_looked_at_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the task is cancelled."""
    monkeypatch.setattr(disk_watch, "EVERY_S", 0)
    looks = asyncio.Semaphore(0)

    class Counting(DiskWatch):
        async def probe(self) -> None:
            looks.release()
            await asyncio.sleep(0)

    running = asyncio.create_task(Counting(tmp_path).run())
    async with asyncio.timeout(60):
        for _ in range(3):
            await looks.acquire()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_a_job_is_logged_step_by_step_and_not_in_between(caplog: pytest.LogCaptureFixture) -> None:
    """Progress goes to metrics and events; a failure says why and what next."""
    caplog.set_level(logging.DEBUG, "cacheagent.jobs")
    log = JobLog()
    for _ in range(2):
        for phase in ("resolving", "fetching", "fetching", "fetching", "failed"):
            error = {"error": "no-room", "message": "needs 141 GB", "hint": "unpin"} if phase == "failed" else {}
            log.follow(JobStatus(name="llama", uri="s3://b/p", phase=phase, elapsed_s=1.23456, **error))  # type: ignore[arg-type]
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    once = [("DEBUG", "llama: resolving"), ("INFO", "llama: fetching"), ("WARNING", "llama: needs 141 GB")]
    assert lines == once * 2
    last = vars(caplog.records[-1])
    assert (last["model"], last["error"], last["hint"], last["elapsed_s"]) == ("llama", "no-room", "unpin", 1.235)
