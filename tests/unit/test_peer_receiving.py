"""The receiver process as the agent sees it: what is known of a place when the process is dead, and when it hangs."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

import pytest

from cacheagent.errors import TargetAbandoned
from cacheagent.member import Member
from cacheagent.peers import receiving
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.orders import Arrived, Connect, Ended, Progress, Release, Released, Unproved
from cacheagent.peers.receiving import Receiving
from cacheagent.transfer.rate import SharedRate
from tests.fakes.peer_children import FailingChild, FakeChild
from tests.fakes.running import until

pytestmark = pytest.mark.asyncio
N1 = Member(name="n1", address="n1.example:7411", key=NodeKey(b"1" * 32).public_text)


class Listening:
    """Remembers how its connection ended."""

    def __init__(self) -> None:
        self.ends: list[Ended] = []

    def said(self, body: bytes, channel: bytes) -> None:
        pass

    def arrived(self, report: Arrived) -> None:
        pass

    def unproved(self, report: Unproved) -> None:
        pass

    def moved(self, report: Progress) -> None:
        pass

    def ended(self, report: Ended) -> None:
        self.ends.append(report)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "Child", FakeChild)
    monkeypatch.setattr(receiving, "ANSWER_WITHIN_S", 0.01)


def connected() -> tuple[Receiving, Listening, int]:
    """To n1."""
    made, listening = Receiving(lambda: (cast("SharedRate", type("Memory", (), {"fd": 3})), 1)), Listening()
    made.start()
    number = made.connect(made.session("sha256:ab", {}), N1, listening)
    assert FakeChild.last.told_of(Connect) == [Connect(id=number, session=1, name="n1", host="n1.example", port=7411)]
    return made, listening, number


async def test_with_tls_a_member_is_known_by_its_keys() -> None:
    """By those of the list and no others; without TLS, none are asked for."""
    made = Receiving(lambda: (cast("SharedRate", type("Memory", (), {"fd": 3})), 1), tls=True)
    made.connect(made.session("sha256:ab", {}), N1, Listening())
    assert [order.tls_keys for order in FakeChild.last.told_of(Connect)] == [N1.keys]
    await made.close()


async def test_pieces_are_free_when_it_says_so() -> None:
    """Or when the connection is over."""
    made, _, number = connected()
    releasing = asyncio.create_task(made.release(number, [1]))
    await until(lambda: FakeChild.last.told_of(Release), "it is asked")
    FakeChild.last.say(Released(number=FakeChild.last.told_of(Release)[0].number))
    await releasing
    FakeChild.last.say(Ended(id=number, kind="reset", message="over"))
    await made.release(number, [1])
    await made.close()


async def test_pieces_are_free_when_the_process_is_dead() -> None:
    """It did not answer, and was killed."""
    made, listening, number = connected()
    releasing = asyncio.create_task(made.release(number, [1]))
    await until(lambda: FakeChild.last.is_killed, "it is killed")
    FakeChild.last.end()
    await releasing
    assert [end.kind for end in listening.ends] == ["reset"]
    await made.release(number, [1])
    await made.close()


async def test_pieces_are_never_free_when_the_process_hangs() -> None:
    """Neither those that are being let go, nor what is asked for afterwards; whoever listens hears why. Other
    connections go to another process."""
    made, listening, number = connected()
    hanging = FakeChild.last
    releasing = asyncio.create_task(made.release(number, [1]))
    await until(lambda: hanging.is_killed, "it is killed")
    hanging.end(is_stuck=True)
    with pytest.raises(TargetAbandoned, match="hangs in the kernel"):
        await releasing
    assert [end.kind for end in listening.ends] == ["stuck"]
    with pytest.raises(TargetAbandoned):
        await made.release(number, [2])
    other = made.connect(1, N1, Listening())
    assert FakeChild.last is not hanging
    FakeChild.last.say(Ended(id=other, kind="reset", message="over"))
    await made.release(other, [2])
    await made.close()
    assert hanging.is_forgotten


async def test_while_no_process_can_be_started_nobody_is_reached(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of those whose process died hears of it and may try again at once, which is no member's fault and no
    defect; when there is a process again, they are connected."""
    monkeypatch.setattr(receiving, "Child", FailingChild)
    caplog.set_level(logging.WARNING)
    made = Receiving(lambda: (cast("SharedRate", type("Memory", (), {"fd": 3})), 1))
    FailingChild.failures = 1
    made.start()
    session = made.session("sha256:ab", {})
    listeners = [Again(made, session) for _ in range(3)]
    for each in listeners:
        each.connect()
    FailingChild.failures = 3
    dead = FakeChild.last
    assert len(dead.told_of(Connect)) == 3
    dead.end()
    assert [[end.kind for end in each.ends] for each in listeners] == [["reset"]] * 3
    await until(lambda: all(len(each.ends) == 2 for each in listeners), "they have heard that it is in vain")
    assert [each.ends[1].kind for each in listeners] == ["connect"] * 3
    assert [each.ends[1].id for each in listeners] == [each.number for each in listeners]
    assert [record.message for record in caplog.records if "started" in record.message] == [
        "the peers' receiver can't be started"
    ]
    listeners[0].connect()
    assert FakeChild.last is not dead
    assert len(FakeChild.last.told_of(Connect)) == 1
    await made.close()
    assert len(listeners[0].ends) == 3


class Again(Listening):
    """Connects again when its connection is reset."""

    def __init__(self, made: Receiving, session: int) -> None:
        super().__init__()
        self.number = 0
        self._made = made
        self._session = session

    def connect(self) -> None:
        self.number = self._made.connect(self._session, N1, self)

    def ended(self, report: Ended) -> None:
        super().ended(report)
        if len(self.ends) == 1:
            self.connect()
