"""One other member, as a subscriber sees it: the connection, what it is to bring, how it does."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import Final, NamedTuple, Protocol

import msgspec

from cacheagent.member import Member
from cacheagent.peers import protocol
from cacheagent.peers.keys import NodeKey, is_signed
from cacheagent.peers.orders import Arrived, Ended, EndKind, Progress, Unproved
from cacheagent.peers.receiving import Receiving

GATHER_S: Final = 0.02
"""Wants of so long go in one message. Chosen."""
RATE_WINDOW_S: Final = 3.0
LONGEST_WINDOW_S: Final = 30.0
STEADY_S: Final = 0.5
"""A connection that lasted so long was none that always breaks. Chosen."""
_TLS_ENDS: Final[dict[EndKind, protocol.RefusalCode]] = {"tls": "tls", "key": "signature"}


class Owner(Protocol):
    """The exchange that a link belongs to."""

    def link_up(self, link: Link) -> None:
        """The member has let us in."""

    def link_arrived(self, link: Link, report: Arrived) -> None:
        """A piece is here."""

    def link_unproved(self, link: Link, report: Unproved) -> None:
        """A piece came whose seal is of somebody else, and no good. Nobody is asked for it now."""

    def link_moved(self, link: Link, report: Progress) -> None:
        """Bytes came."""

    def link_down(self, link: Link, report: Ended) -> None:
        """The connection is over. What was expected of it is not written any more, unless the receiver is stuck."""


class Subject(NamedTuple):
    """What all links of an exchange are about, and by whom. `length`: of a piece, in bytes. `session`: the receiver's
    number for it."""

    digest: str
    pieces: int
    length: Callable[[int], int]
    me: str
    key: NodeKey
    receiving: Receiving
    session: int


class Link:
    """`expected`: pieces that this member, and nobody else, may write now. One event loop."""

    def __init__(self, member: Member, subject: Subject, owner: Owner) -> None:
        self.member = member
        self.expected: set[int] = set()
        self.owed = 0
        """Bytes of those."""
        self.adopt: set[int] = set()
        self.is_up = False
        self.was_up = False
        self.was_proved = False
        """Whether it was this member that had the connection that has ended."""
        self.is_complete = False
        self.have: frozenset[int] = frozenset()
        self.refusal: protocol.Refusal | None = None
        self.failures = 0
        self.fruitless = 0
        """Connections that were let in and brought no piece, since the last piece."""
        self.delivered = 0
        """Bytes of what was expected."""
        self.begun: frozenset[int] = frozenset()
        """Pieces of which a part has come, as it was last told: they would begin anew elsewhere."""
        self.relieved_at = time.monotonic()
        self.called_at = math.inf
        """First."""
        self._up_at = 0.0
        self._brought = False
        self._digest = subject.digest
        self._pieces = subject.pieces
        self._length = subject.length
        self._me = subject.me
        self._key = subject.key
        self._receiving = subject.receiving
        self._receiver_session = subject.session
        self._owner = owner
        self._connection: int | None = None
        self._session: protocol.Session | None = None
        self._number = 0
        self._asked: set[int] = set()
        self._drop: set[int] = set()
        self._offered: set[int] = set()
        self._gathering: asyncio.TimerHandle | None = None
        self._arrivals: deque[tuple[float, int]] = deque()

    @property
    def name(self) -> str:
        """The member's."""
        return self.member.name

    @property
    def is_connected(self) -> bool:
        """Or on the way there."""
        return self._connection is not None

    @property
    def keeps_out(self) -> bool:
        """It has not let this node in, and not because nothing was heard of it yet."""
        return not self.was_up and (self.failures > 0 or self._session is not None)

    def connect(self) -> None:
        """Try; the owner hears how it went."""
        self.called_at = min(self.called_at, time.monotonic())
        self.refusal = None
        self._connection = self._receiving.connect(self._receiver_session, self.member, self)

    def disconnect(self) -> None:
        """The owner hears when it is over."""
        if self._connection is not None:
            self._receiving.disconnect(self._connection)

    def want(self, pieces: Iterable[int], *, adopt: bool = False) -> None:
        """It is to bring these, now or when it is there."""
        wanted = set(pieces)
        self.owed += sum(map(self._length, wanted - self.expected))
        self.expected |= wanted
        if adopt:
            self.adopt |= wanted
        self._gather()

    def offer(self, pieces: Iterable[int]) -> None:
        """This node would take over some of these, which the member is the home of: asked to adopt them, it says
        which."""
        self._offered.update(pieces)
        self._gather()

    def let_go(self, pieces: Collection[int]) -> tuple[frozenset[int], Callable[[], Awaitable[None]]]:
        """It is to bring these no more. Those of them that it was to bring, and what returns when it does not write
        them any more, or raises TargetAbandoned."""
        mine = frozenset(self.expected.intersection(pieces))
        if mine:
            self.owed -= sum(map(self._length, mine))
            self.expected -= mine
            self.adopt -= mine
            self._drop |= mine & self._asked
            self._gather()
        return mine, partial(self._freed, self._connection, mine)

    async def _freed(self, connection: int | None, pieces: Collection[int]) -> None:
        if connection is not None and pieces:
            await self._receiving.release(connection, pieces)

    def relieved(self, wait_s: float = 0.0) -> None:
        """It owes something else than before: it is given time, from when it can have that."""
        self.relieved_at = time.monotonic() + wait_s

    def rate(self, window_s: float = RATE_WINDOW_S) -> float:
        """Bytes a second, lately."""
        now = time.monotonic()
        while self._arrivals and self._arrivals[0][0] < now - LONGEST_WINDOW_S:
            self._arrivals.popleft()
        return sum(size for at, size in self._arrivals if at >= now - window_s) / window_s

    # --- what the receiver says

    def said(self, body: bytes, channel: bytes) -> None:
        """See Listener."""
        try:
            note = protocol.read_note(body)
            if isinstance(note, protocol.Hello):
                self._ask(note, channel)
            elif isinstance(note, protocol.Welcome):
                self._welcomed(note)
            else:
                self.refusal = msgspec.structs.replace(note, message=note.message[:200])  # nobody signed it
                self.disconnect()  # whatever else it says
        except protocol.NoCommonVersion as error:
            self._refuse("version", error)
        except protocol.ProtocolError as error:
            self._refuse("signature", error)

    def arrived(self, report: Arrived) -> None:
        """See Listener."""
        self._is_over(report.number)
        self.failures = self.fruitless = 0
        self._brought = True
        self._owner.link_arrived(self, report)

    def unproved(self, report: Unproved) -> None:
        """See Listener."""
        self._is_over(report.number)
        self._owner.link_unproved(self, report)

    def moved(self, report: Progress) -> None:
        """See Listener."""
        self.delivered += report.useful_bytes
        self.begun = frozenset(report.begun)
        self._arrivals.append((time.monotonic(), report.useful_bytes))
        self._owner.link_moved(self, report)

    def ended(self, report: Ended) -> None:
        """See Listener."""
        if report.kind in _TLS_ENDS and self.refusal is None:  # it was not let in, whoever says so
            self.refusal = protocol.Refusal(code=_TLS_ENDS[report.kind], message=report.message)
        self._connection = self._session = None
        self.was_proved = self.is_up
        if self.is_up:
            self.fruitless += not self._brought
            if time.monotonic() - self._up_at > STEADY_S:
                self.failures = 0  # those were before it
        self.is_up = False
        self.failures += 1
        self.begun = frozenset()
        self._asked.clear()
        self._drop.clear()
        self._offered.clear()
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        self._owner.link_down(self, report)

    def _refuse(self, code: protocol.RefusalCode, error: protocol.ProtocolError) -> None:
        self.refusal = protocol.Refusal(code=code, message=f"{error}"[:200])
        self.disconnect()

    def _is_over(self, piece: int) -> None:
        """It came, whatever it is worth: the member writes it no more."""
        if piece in self.expected:
            self.owed -= self._length(piece)
            self.expected.discard(piece)
        self.adopt.discard(piece)
        self._asked.discard(piece)

    def _ask(self, hello: protocol.Hello, channel: bytes) -> None:
        if self._connection is None or self._session is not None or hello.magic != protocol.MAGIC:
            raise protocol.ProtocolError("a second greeting, or none of ours")
        version = protocol.highest_version(hello.versions)
        nonce = os.urandom(protocol.NONCE_BYTES)
        self._session = protocol.Session(self._digest, self._me, self.name, nonce, hello.nonce, channel)
        self._asked = set(self.expected)
        self._drop.clear()
        self._number = 0
        unsigned = protocol.Ask(
            version=version,
            digest=self._digest,
            client=self._me,
            server=self.name,
            time_s=int(time.time()),
            server_nonce=hello.nonce,
            client_nonce=nonce,
            pieces=self._pieces,
            wants=protocol.pack_set(self._asked),
            adopt=protocol.pack_set(self.adopt & self._asked),
            signature=b"",
        )
        ask = protocol.signed(unsigned, self._key.sign(protocol.ask_to_sign(unsigned, channel)))
        self._receiving.say(self._connection, protocol.request(ask), self._asked)

    def _welcomed(self, welcome: protocol.Welcome) -> None:
        if self._session is None or self.is_up:
            raise protocol.ProtocolError("an answer to no question")
        if not is_signed(protocol.welcome_to_sign(self._session, welcome), welcome.signature, self.member.keys):
            raise protocol.ProtocolError("it answers as a member that it is not")
        have = protocol.unpack_set(welcome.have, self._pieces)
        self.is_up = self.was_up = True
        self._up_at = time.monotonic()
        self._brought = False
        self.is_complete = welcome.complete
        self.have = frozenset(have)
        self.relieved_at = time.monotonic()
        self._gather()
        self._owner.link_up(self)

    def _gather(self) -> None:
        if self.is_up and self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_S, self._tell)

    def _tell(self) -> None:
        self._gathering = None
        fresh = self.expected - self._asked
        adopt = self.adopt & fresh
        again = self._drop & self.expected  # dropped and wanted again: from its first byte
        drop = set(self._drop)
        offered = self._offered & self.expected
        self._offered.clear()
        if self._connection is None or self._session is None or not (fresh or drop or offered):
            return
        self._number += 1
        unsigned = protocol.More(
            number=self._number,
            wants=protocol.pack_set(fresh | again),
            adopt=protocol.pack_set(adopt | offered),
            drop=protocol.pack_set(drop),
            signature=b"",
        )
        more = protocol.signed(unsigned, self._key.sign(protocol.more_to_sign(self._session, unsigned)))
        self._asked = (self._asked - drop) | fresh | again
        self._drop.clear()
        self._receiving.say(self._connection, protocol.request(more), fresh | again)
