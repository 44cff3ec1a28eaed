"""The receiver process as the agent sees it: sessions, connections, and what becomes of them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from cacheagent.errors import TargetAbandoned
from cacheagent.member import Member
from cacheagent.peers.orders import (
    Arrived,
    Connect,
    Disconnect,
    Ended,
    EndKind,
    Forget,
    Keys,
    Progress,
    ReceiverReport,
    Release,
    Released,
    Said,
    Say,
    Target,
    Unproved,
)
from cacheagent.peers.protocol import pack_set
from cacheagent.peers.quiet import Quiet
from cacheagent.transfer.child import Child, argv_of
from cacheagent.transfer.rate import SharedRate

LOG: Final = logging.getLogger(__name__)
ARGV: Final = argv_of("cacheagent.peers.receiver")
ANSWER_WITHIN_S: Final = 5.0
"""How long the process may take to let go of pieces before it counts as hung and is killed."""


class Listener(Protocol):
    """Whoever has a connection."""

    def said(self, body: bytes, channel: bytes) -> None:
        """A note of the server. `channel`: of the connection, see `protocol.Session`."""

    def arrived(self, report: Arrived) -> None:
        """A piece is on disk."""

    def unproved(self, report: Unproved) -> None:
        """A piece came, and nobody vouches for it."""

    def moved(self, report: Progress) -> None:
        """Bytes came."""

    def ended(self, report: Ended) -> None:
        """It is over; nothing of it is written any more, unless the process is stuck."""


class Receiving:
    """Used on the event loop only. The process is started when it is first needed, and again when it died. While none
    can be started, each connection ends as one to a member that is not reached."""

    def __init__(
        self,
        lend: Callable[[], tuple[SharedRate, int]],
        *,
        me: str = "",
        tls: bool = False,
        seals_of: Callable[[str], str] = lambda _digest: "",
    ) -> None:
        """`me`: this node's name. `tls`: whether peers speak it. `seals_of`: the file that keeps who vouches for pieces
        of a digest; empty: none."""
        self._lend = lend
        self._me = me
        self._tls = tls
        self._seals_of = seals_of
        self._memory: tuple[SharedRate, int] | None = None
        self._child: Child[ReceiverReport] | None = None
        self._numbers = itertools.count(1)
        self._keys: dict[int, Keys] = {}
        self._targets: dict[int, list[Target]] = {}
        self._listeners: dict[int, Listener] = {}
        self._releases: dict[int, asyncio.Future[None]] = {}
        self._stuck: dict[int, Child[ReceiverReport]] = {}
        """By their connections."""
        self._quiet = Quiet()

    def start(self) -> None:
        """Have the process ready before it is needed: it takes a fifth of a second."""
        self._running()

    def session(self, digest: str, keys: dict[str, tuple[bytes, ...]]) -> int:
        """A new one."""
        number = next(self._numbers)
        self._targets[number] = []
        self.set_keys(number, digest, keys)
        return number

    def set_keys(self, session: int, digest: str, keys: dict[str, tuple[bytes, ...]]) -> None:
        """Whose seals are good from now on."""
        seals = self._seals_of(digest)
        self._keys[session] = Keys(session=session, digest=digest, keys=keys, me=self._me, seals=seals)
        if self._child is not None:
            self._child.send(self._keys[session])

    def add(self, target: Target) -> None:
        """A file that pieces are written to from now on."""
        self._targets[target.session].append(target)
        if self._child is not None:
            self._child.send(target)

    def forget(self, session: int) -> None:
        """Its connections have ended."""
        self._keys.pop(session, None)
        self._targets.pop(session, None)
        if self._child is not None:
            self._child.send(Forget(session=session))

    def connect(self, session: int, member: Member, listener: Listener) -> int:
        """Begin; the listener hears the rest."""
        child = self._running()
        number = next(self._numbers)
        self._listeners[number] = listener
        if child is None:
            ended = Ended(id=number, kind="connect", message="the peers' receiver can't be started")
            asyncio.get_running_loop().call_soon(self._heard, ended)
            return number
        child.send(
            Connect(
                id=number,
                session=session,
                name=member.name,
                host=member.host,
                port=member.port,
                tls_keys=member.keys if self._tls else (),
            )
        )
        return number

    def say(self, connection: int, data: bytes, expect: Iterable[int]) -> None:
        """To the server of a connection, which may bring these pieces from now on."""
        if self._child is not None:
            self._child.send(Say(id=connection, data=data, expect=pack_set(expect)))

    async def release(self, connection: int, pieces: Iterable[int]) -> None:
        """Returns when the connection does not write these pieces any more. Raises TargetAbandoned."""
        if (stuck := self._stuck.get(connection)) is not None:
            raise abandoned(_hangs(stuck))
        if self._child is None or connection not in self._listeners:
            return
        number = next(self._numbers)
        self._child.send(Release(id=connection, number=number, pieces=pack_set(pieces)))
        await self._answered(number)

    def disconnect(self, connection: int) -> None:
        """The listener hears when it is over."""
        if self._child is not None:
            self._child.send(Disconnect(id=connection))

    async def close(self) -> None:
        """End the process. Nobody may use this any more."""
        if self._child is not None:
            await self._child.close()
        for child in set(self._stuck.values()):
            child.forget()

    async def _answered(self, number: int) -> None:
        child = self._child
        assert child is not None
        answer = self._releases[number] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait((answer,), timeout=ANSWER_WITHIN_S)
            if not answer.done():
                child.kill()
            await child_or(child, answer)
        finally:
            self._releases.pop(number, None)
        if child.is_stuck and not answer.done():
            raise abandoned(_hangs(child))

    def _running(self) -> Child[ReceiverReport] | None:
        if self._child is None:
            try:
                self._child = self._started()
            except OSError as error:  # no memory or no process to spare, which may be why the last one died
                if times := self._quiet.count((self._me, "start"), time.monotonic()):
                    LOG.warning("the peers' receiver can't be started", extra={"why": str(error), "times": times})
                return None
            for session, keys in self._keys.items():
                self._child.send(keys)
                for target in self._targets[session]:
                    self._child.send(target)
        return self._child

    def _started(self) -> Child[ReceiverReport]:
        self._memory = self._memory or self._lend()
        shared, slot = self._memory
        return Child(
            [*ARGV, "--shared-fd", str(shared.fd), "--slot", str(slot)],
            (shared.fd,),
            ReceiverReport,
            name="the peers' receiver",
            on_report=self._heard,
            on_end=self._died,
        )

    def _heard(self, report: ReceiverReport) -> None:
        if isinstance(report, Released):
            if (answer := self._releases.get(report.number)) is not None and not answer.done():
                answer.set_result(None)
            return
        listener = self._listeners.get(report.id)
        if listener is None:
            return
        match report:
            case Said():
                listener.said(report.body, report.channel)
            case Arrived():
                listener.arrived(report)
            case Unproved():
                listener.unproved(report)
            case Progress():
                listener.moved(report)
            case Ended():
                del self._listeners[report.id]
                listener.ended(report)

    def _died(self) -> None:
        child, self._child = self._child, None
        listeners, self._listeners = self._listeners, {}
        kind: EndKind = "reset"
        message = "the receiver process ended"
        if child is not None and not child.is_leaving:
            LOG.warning("the peers' receiver ended; another one takes its place", extra={"how": child.how_it_ended})
        if child is not None and child.is_stuck:
            self._stuck.update(dict.fromkeys(listeners, child))
            kind, message = "stuck", _hangs(child)
        for number, listener in listeners.items():
            listener.ended(Ended(id=number, kind=kind, message=message))


def abandoned(why: str) -> TargetAbandoned:
    """For whoever would have written there next."""
    return TargetAbandoned(why, hint="look for a disk that stopped answering: dmesg, ps state D")


def _hangs(child: Child[ReceiverReport]) -> str:
    return f"the peers' receiver {child.pid} hangs in the kernel and may still write"


async def child_or(child: Child[ReceiverReport], answer: asyncio.Future[None]) -> None:
    """Until either has ended."""
    ended = asyncio.ensure_future(child.ended.wait())
    try:
        await asyncio.wait((ended, answer), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
