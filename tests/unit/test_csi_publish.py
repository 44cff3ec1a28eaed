"""Held calls, and an agent that is away for a moment, without the kernel and in no time."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pytest

from cacheagent.api.schema import Volume, VolumeRequest
from cacheagent.errors import AgentUnavailable
from csi import publish
from csi.errors import MountFailed, NotReady
from csi.holds import REMEMBERED, Holds
from csi.mountinfo import CacheDirectory, Mount
from csi.publish import Agent, Places, Publisher
from csi.target import read_target
from csi.validate import Order
from tests.unit.test_csi_validate import TARGET

ORDER = Order(
    target=read_target(TARGET, PurePosixPath("/var/lib/kubelet")),
    request=VolumeRequest(namespace="team-a", model="tiny"),
)


async def _forever() -> str:
    await asyncio.Event().wait()
    return "never"


async def _answer(value: str) -> str:
    return value


@pytest.mark.asyncio
async def test_a_hold_gives_the_answer() -> None:
    """An answer and an error come through as they are."""
    holds = Holds()
    assert await holds.wait("v", _answer("here")) == "here"

    async def fail() -> None:
        raise AgentUnavailable("gone")

    with pytest.raises(AgentUnavailable):
        await holds.wait("v", fail())


@pytest.mark.parametrize(
    ("let_go", "sentence"),
    [(lambda holds: holds.stop(), "restarting"), (lambda holds: holds.interrupt("v"), "unpublished")],
)
@pytest.mark.asyncio
async def test_a_hold_is_let_go(let_go: Callable[[Holds], None], sentence: str) -> None:
    """By the driver's end, or by its volume's; another volume's hold goes on unless the driver ends."""
    holds = Holds()
    held = asyncio.create_task(holds.wait("v", _forever()))
    other = asyncio.create_task(holds.wait("other", _forever()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    let_go(holds)
    with pytest.raises(NotReady, match=sentence):
        await held
    assert other.done() == (sentence == "restarting")
    other.cancel()
    with pytest.raises((asyncio.CancelledError, NotReady)):
        await other


@pytest.mark.asyncio
async def test_nobody_is_held_after_the_end() -> None:
    """A call that comes while the driver stops is answered at once."""
    holds = Holds()
    holds.stop()
    with pytest.raises(NotReady, match="restarting"):
        await holds.wait("v", _forever())


@pytest.mark.asyncio
async def test_a_cancelled_hold_ends_with_its_work() -> None:
    """Cancelling is delivered when what was going on has ended."""
    holds, ended = Holds(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    held = asyncio.create_task(holds.wait("v", work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    assert ended.is_set()


def test_the_first_question_is_remembered() -> None:
    """Until the volume is unpublished, or ten thousand others were asked for."""
    holds = Holds()
    assert holds.first("v")
    assert not holds.first("v")
    holds.interrupt("v")
    assert holds.first("v")
    for number in range(REMEMBERED):
        assert holds.first(f"other-{number}")
    assert holds.first("v")


class Clock:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class ScriptedAgent:
    """Each question gets the next answer; an exception is raised, a number lets so many seconds pass first."""

    def __init__(self, clock: Clock, *answers: tuple[float, str]) -> None:
        self.asked: list[float] = []
        self._clock = clock
        self._answers = list(answers)

    async def volume(self, volume_id: str, request: VolumeRequest) -> Volume:
        self.asked.append(request.wait_s)
        after_s, state = self._answers.pop(0) if self._answers else (0.0, "away")
        self._clock.now += after_s
        if state == "away":
            raise AgentUnavailable("no agent answers")
        return Volume(volume_id=volume_id, state="waiting", message=state)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()

    class Loop:
        def time(self) -> float:
            return made.now

    class Asyncio:
        sleep = made.sleep
        get_running_loop = Loop

    monkeypatch.setattr(publish, "asyncio", Asyncio)
    return made


def _ask(agent: ScriptedAgent, time_left_s: float | None, *, first: bool = False) -> Awaitable[Volume]:
    holds = Holds()
    if not first:
        holds.first(ORDER.volume_id)

    places = Places(Path("/cache"), CacheDirectory("0:1", "/"), Path("/var/lib/kubelet"))
    return Publisher(places, cast("Agent", agent), holds, _no_give_back)._ask(ORDER, time_left_s)


@pytest.mark.parametrize(
    ("time_left_s", "first", "held_s"),
    [(120.0, True, 0.0), (120.0, False, 110.0), (None, False, 110.0), (30.0, False, 25.0), (3.0, False, 0.0)],
)
@pytest.mark.asyncio
async def test_how_long_a_call_is_held(clock: Clock, time_left_s: float | None, first: bool, held_s: float) -> None:  # noqa: FBT001
    """Not at all at first, then as long as the caller has time, but for the way back."""
    agent = ScriptedAgent(clock, (0.0, "37 %"))
    assert (await _ask(agent, time_left_s, first=first)).message == "37 %"
    assert agent.asked == [held_s]


@pytest.mark.asyncio
async def test_an_agent_that_restarts_is_waited_for(clock: Clock) -> None:
    """It is asked again for what is left of the hold, also when it goes away late."""
    agent = ScriptedAgent(clock, (60.0, "away"), (0.0, "away"), (0.0, "away"), (0.0, "50 %"))
    assert (await _ask(agent, 120.0)).message == "50 %"
    assert agent.asked == [110.0, 49.5, 49.0, 48.5]


@pytest.mark.asyncio
async def test_an_agent_that_stays_away_is_told_of(clock: Clock) -> None:
    """After fifteen seconds, and at once when nothing may be held."""
    began, agent = clock.now, ScriptedAgent(clock)
    with pytest.raises(AgentUnavailable):
        await _ask(agent, 120.0)
    assert 14 < clock.now - began <= 15
    again: Any = ScriptedAgent(clock)
    with pytest.raises(AgentUnavailable):
        await _ask(again, 120.0, first=True)
    assert again.asked == [0.0]


class Kernel:
    """Mounts lie on the target; `stuck`: the kernel finds none of them by its path. `remounted`: whoever takes one away
    finds another."""

    def __init__(self, mounts: int, *, stuck: bool = False, remounted: bool = False) -> None:
        self.ids = list(range(100, 100 + mounts))
        self.stuck = stuck
        self.remounted = remounted
        self.asked = 0

    def read_mounts(self) -> list[Mount]:
        return [
            Mount(each, each - 1, "0:9", "/elsewhere", f"/var/lib/kubelet/{'/'.join(ORDER.target.parts)}", frozenset())
            for each in self.ids
        ]

    def detach(self, parent: int, name: str) -> None:
        self.asked += 1
        if self.stuck or not self.ids:
            raise OSError(errno.EINVAL, "Invalid argument")
        last = self.ids.pop()
        if self.remounted:
            self.ids.append(last + 1)


def _clear(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "read_mounts", kernel.read_mounts)
    monkeypatch.setattr("csi.publish.mount.detach", kernel.detach)
    places = Places(Path("/cache"), CacheDirectory("0:1", "/"), Path("/var/lib/kubelet"))
    Publisher(places, cast("Agent", None), Holds(), _no_give_back)._clear(ORDER.target, 0)


async def _no_give_back(volume_id: str) -> None:
    raise AssertionError("nothing is unpublished here")


@pytest.mark.parametrize("mounts", [0, 1, 3])
def test_what_lies_on_the_target_is_taken_away(mounts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, one by one."""
    kernel = Kernel(mounts)
    _clear(kernel, monkeypatch)
    assert (kernel.ids, kernel.asked) == ([], mounts)


def test_a_mount_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lists it and finds nothing by its path: that is said after one more look, and not tried for ever."""
    kernel = Kernel(2, stuck=True)
    with pytest.raises(MountFailed, match=r"/mount: mount 101 of /elsewhere is listed there") as caught:
        _clear(kernel, monkeypatch)
    assert "findmnt" in caught.value.hint
    assert (kernel.ids, kernel.asked) == ([100, 101], 1)


def test_a_place_that_somebody_mounts_on_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After more than this driver could ever have put there."""
    kernel = Kernel(1, remounted=True)
    with pytest.raises(MountFailed, match="still mounted there after 100 were taken away"):
        _clear(kernel, monkeypatch)
    assert kernel.asked == publish.MOST_MOUNTS
