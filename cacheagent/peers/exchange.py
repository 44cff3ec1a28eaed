"""One digest on this node: which piece is asked of whom, from the start of a download to its end.

Every piece that this node lacks is at any time in one place: waiting to be asked of the origin (`_own`), asked of
it (`_at_origin`), or expected from one member (`Link.expected`). It moves only when nobody writes it any more.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate
from statistics import median
from typing import Final

from cacheagent.checksum import find_cuts, needed_crcs
from cacheagent.errors import TargetAbandoned
from cacheagent.member import Member
from cacheagent.model import piece_count, piece_range
from cacheagent.peers.homes import assign_homes, rank
from cacheagent.peers.link import Link, Subject
from cacheagent.peers.node import PeerNode
from cacheagent.peers.orders import Adopt, Arrived, Ended, Target
from cacheagent.peers.protocol import unpack_set
from cacheagent.peers.rules import FACTOR, OUT_AFTER_S, PATIENCE_S, Home, find_slow, tail
from cacheagent.peers.service import Shown
from cacheagent.threads import in_thread
from cacheagent.transfer.base import BlobOrder, PieceSink

LOG: Final = logging.getLogger(__name__)

TICK_S: Final = 0.5
ANSWERS_WITHIN_S: Final = 0.5
"""How long this node waits for what the others have before it asks the origin for its own pieces."""
COLD_ANSWERS: Final = 2
"""So many members that have nothing, and none that has anything, tell that nobody else is ahead. Chosen."""
AT_ORIGIN: Final = 2
"""Own pieces that a node asks the origin for at once: the next one is asked for before the last one has ended. More
would take its link from what the others send. Chosen."""
HOLDERS_FEED: Final = 4
"""Members that hold everything stand in for the origin if there is one for so many: their links carry it. Chosen."""
NO_PROGRESS_S: Final = 15.0
"""Nothing at all for so long: what is missing is asked of the origin. Chosen."""
RETRY_S: Final = (0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
"""Pauses before a member is tried again."""


class Exchange:
    """Used on the event loop only."""

    def __init__(
        self, digest: str, blobs: dict[str, int], members: Sequence[Member], node: PeerNode, banned: set[str]
    ) -> None:
        """`blobs`: the large files in the order of their paths, and their sizes. `banned`: names of members that lied,
        which others add to."""
        self.digest = digest
        self._node = node
        self._me = node.name
        self._service = node.service
        self._receiving = node.receiving
        self._observer = node.observer
        self._banned = banned
        self._sizes = tuple(blobs.values())
        starts = [0, *accumulate(piece_count(size) for size in self._sizes)]
        self._pieces = starts[-1]
        self._first = dict(zip(blobs, starts, strict=False))
        self._names = tuple(sorted(member.name for member in members))
        keys = {member.name: member.keys for member in members}
        self._session = node.receiving.session(digest, keys)
        subject = Subject(digest, self._pieces, node.name, node.key, node.receiving, self._session)
        self._links = {member.name: Link(member, subject, self) for member in members if member.name != node.name}
        self._homes: tuple[str, ...] = ()
        self._shares: dict[int, BlobShare] = {}
        self._share_of: dict[int, BlobShare] = {}
        self._own: list[int] = []
        self._at_origin: set[int] = set()
        self._here: set[int] = set()
        self._vouched: dict[int, tuple[str, bytes, str]] = {}
        self._adopted: set[int] = set()
        self._tried: defaultdict[int, set[str]] = defaultdict(set)
        self._answered: set[str] = set()
        self._cold = 0
        self._is_late = False
        self._is_checked = False
        self._out: set[str] = set()
        self._released = False
        self._closing = False
        self._started = time.monotonic()
        self._moved_at = self._started
        self._ticks = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    async def start(self, shown: Shown) -> None:
        """Find the homes and call the others. `shown`: what is here of the digest before anything is brought."""
        self._homes = await in_thread(lambda: assign_homes(self._names, self.digest, self._pieces))
        self._service.show(shown, self._names)
        for blob, size in zip(self._first, self._sizes, strict=True):
            if blob in shown.here:
                self._here.update(range(self._first[blob], self._first[blob] + piece_count(size)))
        for link in self._links.values():
            if link.name not in self._banned:
                link.connect()
            else:
                self._out.add(link.name)
        self._later(ANSWERS_WITHIN_S, self._release)
        self._later(TICK_S, self._tick)

    def share(self, order: BlobOrder) -> BlobShare:
        """Who brings which piece of a blob, whose target is there."""
        first = self._first[order.blob_id]
        self._service.set_path(self.digest, list(self._first).index(order.blob_id), order.target)
        self._receiving.add(
            Target(
                session=self._session,
                first=first,
                path=order.target,
                size_bytes=order.size_bytes,
                crcs=needed_crcs(order.checksums),
                cuts=find_cuts(order.checksums, 0, order.size_bytes),
            )
        )
        return BlobShare(self, first, order.size_bytes)

    async def leave(self) -> None:
        """The job is over, however it went; its blobs have ended. Others go on to be served by the service."""
        self._closing = True
        for timer in self._timers:
            timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        for link in self._links.values():
            link.disconnect()
        if not any(link.is_connected for link in self._links.values()):
            self._receiving.forget(self._session)

    def adopt(self, order: Adopt) -> None:
        """A member asks this node to fetch pieces if nobody else brings them."""
        for piece in unpack_set(order.pieces, self._pieces):
            if piece in self._here or piece in self._at_origin:
                continue
            self._adopted.add(piece)
            holder = next((link for link in self._links.values() if piece in link.expected), None)
            if holder is not None and (holder.name == order.client or not self._is_good(holder)):
                self._move(holder, [piece])

    # --- pieces of one blob

    def begin(self, share: BlobShare, missing: Iterable[int]) -> None:
        """These must come, from somewhere."""
        wanted: defaultdict[str, list[int]] = defaultdict(list)
        for piece in missing:
            self._share_of[piece] = share
            wanted[self._homes[piece]].append(piece)
        for name, pieces in wanted.items():
            if name == self._me or self._adopted.issuperset(pieces):
                self._queue(pieces)
            elif name in self._out:
                self._rehome(pieces, {name})
            else:
                self._links[name].want(pieces)
        self._feed()

    def have(self, piece: int, blake3: str) -> None:
        """A piece is on disk and proved, wherever it came from."""
        self._here.add(piece)
        self._moved_at = time.monotonic()
        signer, signature, vouched = self._vouched.get(piece, ("", b"", ""))
        if vouched != blake3:  # it came from the origin, if not at first
            signer, signature = "", b""
        self._service.have(self.digest, piece, bytes.fromhex(blake3), signer, signature)
        if piece in self._at_origin:
            self._at_origin.discard(piece)
            self._feed()

    def came(self, piece: int, length: int) -> None:
        """A part of a piece came from the origin."""
        self._moved_at = time.monotonic()
        self._service.part(self.digest, piece, length)

    def sender_of(self, piece: int) -> str:
        """Who vouched for it; empty for the origin."""
        return self._vouched[piece][0] if piece in self._vouched else ""

    def lose(self, pieces: range) -> None:
        """Something in these is wrong, and it is not known yet what."""
        self._service.lose(self.digest, pieces)
        for piece in pieces:
            self._here.discard(piece)

    @property
    def others(self) -> int:
        """How many other members there are."""
        return len(self._links)

    def is_first_check(self) -> bool:
        """True once."""
        first, self._is_checked = not self._is_checked, True
        return first

    def accuse(self, name: str, what: str) -> None:
        """A member vouched for bytes that the origin does not have: it is left out for this agent's life."""
        LOG.error("a peer lied", extra={"peer": name, "what": what, "digest": self.digest})
        self._banned.add(name)
        self._observer.peer_lied()
        if (link := self._links.get(name)) is not None:
            link.disconnect()

    async def end(self, share: BlobShare, pieces: Collection[int]) -> None:
        """Nobody brings these any more. Raises TargetAbandoned."""
        for piece in pieces:
            self._share_of.pop(piece, None)
            self._at_origin.discard(piece)
        gone = set(pieces)
        self._own = [piece for piece in self._own if piece not in gone]
        heapq.heapify(self._own)
        for link in self._links.values():
            if not link.expected.isdisjoint(gone):
                await link.release(gone)
        self._feed()

    # --- what links say

    def link_up(self, link: Link) -> None:
        """See Owner."""
        self._out.discard(link.name)
        self._answer(link.name)

    def link_arrived(self, link: Link, report: Arrived) -> None:
        """See Owner."""
        share = self._share_of.get(report.number)
        if share is not None and report.number not in self._here:
            self._vouched[report.number] = (report.signer, report.signature, report.piece.blake3)
            share.put(report)

    def link_moved(self, link: Link, size_bytes: int) -> None:
        """See Owner."""
        self._moved_at = time.monotonic()
        self._observer.peer_received(size_bytes)

    def link_down(self, link: Link, report: Ended) -> None:
        """See Owner."""
        self._answer(link.name)
        if self._closing:
            if not any(each.is_connected for each in self._links.values()):
                self._receiving.forget(self._session)
            return
        refusal = link.refusal.code if link.refusal is not None else ""
        what = link.refusal.message if link.refusal is not None else report.message
        if refusal not in {"", "digest", "busy"} or report.kind in {"mismatch", "forged", "protocol"}:
            LOG.warning("a peer is no help", extra={"peer": link.name, "why": what, "digest": self.digest})
        if link.was_up and link.failures == 1 and not refusal and link.name not in self._banned:
            self._connect(link)
            return
        # "member", "signature": it has not heard of this node, or of its new key, by now.
        not_yet = refusal in {"digest", "busy", "member", "signature"} or report.kind == "connect"
        if link.was_up or not not_yet:
            self._give_up(link)
        self._later(RETRY_S[min(link.failures, len(RETRY_S)) - 1], lambda: self._connect(link))

    # --- decisions

    def _tick(self) -> None:
        self._later(TICK_S, self._tick)
        self._ticks += 1
        now = time.monotonic()
        for link in self._links.values():
            if not link.was_up and link.expected and now - self._started > OUT_AFTER_S:
                self._give_up(link)
        homes = [self._as_home(link, now) for link in self._links.values() if link.delivered or link.expected]
        mine = self._myself(now)
        if not mine.owed and all(home.rate < mine.rate / 4 for home in homes if home.owed):
            homes.append(mine)  # before that, what it gets from the origin leaves the others less of its own link
        for name in find_slow(homes):
            if name != self._me:
                self._relieve(self._links[name])
        if now - self._moved_at > NO_PROGRESS_S:
            self._moved_at = now
            for link in self._links.values():
                if link.expected:
                    self._move(link, list(link.expected), to_origin=True)
        if self._ticks % 10 == 0:
            self._look_at_members()

    def _as_home(self, link: Link, now: float) -> Home:
        owed = sum(self._length(piece) for piece in link.expected)
        return Home(link.name, link.delivered, owed, link.rate(), now - max(link.relieved_at, self._started))

    def _myself(self, now: float) -> Home:
        """This node as a home: what it has of its own pieces."""
        mine = [piece for piece, home in enumerate(self._homes) if home == self._me]
        done = sum(self._length(piece) for piece in mine if piece in self._here)
        owed = sum(self._length(piece) for piece in mine if piece not in self._here)
        return Home(self._me, done, owed, done / max(now - self._started, TICK_S), now - self._started)

    def _relieve(self, link: Link) -> None:
        once = [piece for piece in link.expected if not self._tried[piece]]
        pieces = tail(once or list(link.expected), set())
        if not once and link.rate() > 0:
            return  # they were moved before, and they come
        LOG.info("a slow peer is relieved", extra={"peer": link.name, "pieces": len(pieces), "digest": self.digest})
        link.relieved_at = time.monotonic()
        self._move(link, pieces)

    def _move(self, link: Link, pieces: Sequence[int], *, to_origin: bool = False) -> None:
        """Away from a member that may still be writing them."""

        async def move() -> None:
            asked = link.expected.intersection(pieces)
            try:
                await link.release(asked)
            except TargetAbandoned as error:
                LOG.warning("pieces can't be moved: %s", error.message)
                return
            left = [piece for piece in asked if piece not in self._here and piece in self._share_of]
            if to_origin:
                self._observer.peer_rehomed(len(left))
                self._queue(left)
                self._feed()
            else:
                self._rehome(left, {link.name})

        task = asyncio.get_running_loop().create_task(move(), name=f"pieces from {link.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _give_up(self, link: Link) -> None:
        """Its connection is over, or there was none: nobody writes what it owed."""
        self._out.add(link.name)
        left = [piece for piece in link.take_all() if piece not in self._here and piece in self._share_of]
        if left:
            self._rehome(left, {link.name})

    def _rehome(self, pieces: Iterable[int], without: set[str]) -> None:
        """Each to the next in its rank who is not known to be out and had no chance yet; at last to this node."""
        wanted: defaultdict[str, list[int]] = defaultdict(list)
        count = 0
        for piece in pieces:
            tried = self._tried[piece]
            tried |= without
            names = [name for name in self._names if name not in tried and name not in self._out]
            heir = self._me if piece in self._adopted or not names else rank(names, self.digest, piece)[0]
            wanted[heir].append(piece)
            count += 1
        self._observer.peer_rehomed(count)
        for name, some in wanted.items():
            if name == self._me:
                self._queue(some)
            else:
                self._links[name].want(some, adopt=True)
                self._links[name].relieved_at = time.monotonic()  # it has to get them first
        self._feed()

    def _is_good(self, link: Link) -> bool:
        """It is there and not much slower than the others."""
        now = time.monotonic()
        rests = [self._as_home(other, now).rest_s for other in self._links.values() if other is not link]
        usual = median(rests) if rests else 0.0
        return link.is_up and self._as_home(link, now).rest_s <= max(PATIENCE_S, FACTOR * usual)

    # --- this node's own pieces

    def _answer(self, name: str) -> None:
        link = self._links[name]
        self._answered.add(name)
        if link.is_up and (link.is_complete or link.have):
            self._is_late = True
        elif link.is_up or (link.refusal is not None and link.refusal.code == "digest"):
            self._cold += 1
        all_have = len(self._answered | self._banned) >= len(self._links)
        if all_have or (self._cold >= COLD_ANSWERS and not self._is_late):
            self._release()

    def _release(self) -> None:
        """It is known what the others have: the rest of this node's own pieces is asked for, of them or of the
        origin."""
        if self._released:
            return
        self._released = True
        own, self._own = self._own, []
        self._queue(own)
        self._feed()

    def _queue(self, pieces: Iterable[int]) -> None:
        """To be had from whoever has them, or from the origin."""
        holders = [link for link in self._links.values() if link.is_up and link.is_complete]
        enough = len(holders) * HOLDERS_FEED >= len(self._names)
        for piece in pieces:
            partial = [link for link in self._links.values() if link.is_up and piece in link.have]
            able = [link for link in [*partial, *(holders if enough else ())] if link.name not in self._tried[piece]]
            if able:
                names = [link.name for link in able]
                self._links[rank(names, self.digest, piece)[0]].want([piece])
            else:
                heapq.heappush(self._own, piece)

    def _feed(self) -> None:
        """As many at the origin as there should be."""
        while self._released and self._own and len(self._at_origin) < AT_ORIGIN and not self._closing:
            piece = heapq.heappop(self._own)
            share = self._share_of.get(piece)
            if share is not None and piece not in self._here:
                self._at_origin.add(piece)
                share.want(piece)

    # --- members

    def _look_at_members(self) -> None:
        members = {member.name: member for member in self._node.members(self.digest)}
        if not members:
            return  # nobody knows at the moment
        for name, link in self._links.items():
            if name not in members:
                if link.is_connected:
                    link.disconnect()
                self._banned.add(name)
            elif members[name] != link.member:
                link.member = members[name]
        keys = {name: member.keys for name, member in members.items()}
        self._receiving.set_keys(self._session, self.digest, keys)

    # --- small things

    def _connect(self, link: Link) -> None:
        if not self._closing and not link.is_connected and link.name not in self._banned:
            link.connect()

    def _length(self, piece: int) -> int:
        share = self._share_of.get(piece)
        return share.length(piece) if share is not None else 0

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        def now() -> None:
            self._timers.discard(timer)
            what()

        timer = asyncio.get_running_loop().call_later(seconds, now)
        self._timers.add(timer)


class BlobShare:
    """Implements `cacheagent.transfer.base.Share` for one blob of an exchange."""

    def __init__(self, exchange: Exchange, first: int, size_bytes: int) -> None:
        self._exchange = exchange
        self._first = first
        self._size_bytes = size_bytes
        self._sink: PieceSink | None = None

    def begin(self, sink: PieceSink, missing: Sequence[int]) -> None:
        """See Share."""
        self._sink = sink
        self._exchange.begin(self, [self._first + index for index in missing])

    def came(self, index: int, length: int) -> None:
        """See Share."""
        self._exchange.came(self._first + index, length)

    async def end(self) -> None:
        """See Share."""
        self._sink = None
        await self._exchange.end(self, range(self._first, self._first + piece_count(self._size_bytes)))

    def have(self, index: int, blake3: str) -> None:
        """A piece is on disk and proved, from wherever."""
        self._exchange.have(self._first + index, blake3)

    def sender_of(self, index: int) -> str:
        """Who vouched for a piece; empty for the origin."""
        return self._exchange.sender_of(self._first + index)

    def lose(self) -> None:
        """Nothing of it is given to others any more."""
        self._exchange.lose(range(self._first, self._first + piece_count(self._size_bytes)))

    @property
    def others(self) -> int:
        """See `sharing.BlobShare`."""
        return self._exchange.others

    def is_first_check(self) -> bool:
        """See `sharing.BlobShare`."""
        return self._exchange.is_first_check()

    def accuse(self, name: str, what: str) -> None:
        """It vouched for bytes that the origin does not have."""
        self._exchange.accuse(name, what)

    def want(self, piece: int) -> None:
        """Of the origin."""
        if self._sink is not None:
            self._sink.want([piece - self._first])

    def put(self, report: Arrived) -> None:
        """From a member."""
        if self._sink is not None:
            self._sink.put(report.piece)

    def length(self, piece: int) -> int:
        """Bytes."""
        return piece_range(self._size_bytes, piece - self._first)[1]
