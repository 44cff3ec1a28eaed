"""One digest on this node, from the start of a download to its end: who takes part in it, and how each of them does.

Where each missing piece is, is `Placement`'s business; who may take part, `Standing`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Final

from cacheagent.checksum import find_cuts, needed_crcs, needs_serial
from cacheagent.cohorts import ROOT, Circle
from cacheagent.model import piece_count, piece_range
from cacheagent.peers.answers import Answers
from cacheagent.peers.link import Link, Subject
from cacheagent.peers.node import PeerNode
from cacheagent.peers.orders import Adopt, Arrived, Ended, Have, Progress, Target, Unproved
from cacheagent.peers.pace import Pace
from cacheagent.peers.placement import Placement
from cacheagent.peers.protocol import unpack_set
from cacheagent.peers.receiving import abandoned
from cacheagent.peers.rules import OUT_AFTER_S, Movement, tail
from cacheagent.peers.service import Shown
from cacheagent.peers.share import BlobShare
from cacheagent.peers.standing import FAULTS, Break, Standing, after
from cacheagent.peers.zones import Zones
from cacheagent.threads import in_thread
from cacheagent.transfer.base import BlobOrder

LOG: Final = logging.getLogger(__name__)

TICK_S: Final = 0.5
LOOK_TICKS: Final = 10
"""Between two looks at who is a member."""
ANSWERS_WITHIN_S: Final = 0.5
"""How long this node waits for what the others have before it asks the origin for its own pieces."""
AHEAD_S: Final = 5.0
"""What waits here to be sent to others for so long is enough: the origin is left to those who have less. Chosen."""
STOOD_STILL_S: Final = 2.0
"""Who is so late with a tick did not run, and so can't tell who is slow or whether anything comes: it was paused, or
others had its CPU. Chosen."""
RETRY_S: Final = (0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
"""Pauses before a member is tried again."""


class Exchange:
    """Used on the event loop only. Owner of its links, keeper of its files."""

    def __init__(self, digest: str, blobs: dict[str, int], circle: Circle, node: PeerNode, liars: set[str]) -> None:
        """`blobs`: the large files in the order of their paths, and their sizes. `liars`: names of members that lied,
        which others add to."""
        self.digest = digest
        self._node = node
        self._service = node.service
        self._receiving = node.receiving
        self._liars = liars
        self._standing = Standing(liars)
        self._sizes = tuple(blobs.values())
        self._starts = [0, *accumulate(piece_count(size) for size in self._sizes)]
        self._pieces = self._starts[-1]
        self._first = dict(zip(blobs, self._starts, strict=False))
        self._files = {blob: number for number, blob in enumerate(blobs)}
        self._zones = Zones(circle.near, node.name, digest, circle.above)
        self._level = circle.level
        self._session = node.receiving.session(digest, self._keys(circle))
        subject = Subject(digest, self._pieces, self._length, node.name, node.key, node.receiving, self._session)
        members = [member for member in (*circle.near, *circle.above) if member.name != node.name]
        self._links = {member.name: Link(member, subject, self) for member in members}
        self._above = [link for name, link in self._links.items() if name in self._zones.above]
        self._placement = Placement(self._zones, self._links, node.observer)
        self._pace = Pace(self._zones, self._links, self._placement)
        self._movement = Movement(time.monotonic())
        self._vouched: dict[int, Have] = {}
        self._unproved: set[int] = set()
        """Pieces of files that only CRCs, or nothing, speak for."""
        self._answers = Answers()
        self._is_checked = False
        self._is_open = False
        self._closing = False
        self._ticks = 0
        self._ticked_at = time.monotonic()
        self._inflow = 0
        """Bytes since then."""
        self._timers: set[asyncio.TimerHandle] = set()

    async def start(self, shown: Shown) -> None:
        """Find the homes and call the others. `shown`: what is here of the digest before anything is brought."""
        await in_thread(lambda: self._zones.assign(self._pieces))
        self._vouched = await self._service.vouched(self.digest)
        self._pace = Pace(self._zones, self._links, self._placement)
        self._ticked_at = time.monotonic()
        self._movement.restart(self._ticked_at)
        self._service.show(shown, self._zones.names, self._vouched)
        for blob, size in zip(self._first, self._sizes, strict=True):
            if blob in shown.here:
                self._placement.here.update(range(self._first[blob], self._first[blob] + piece_count(size)))
        for link in self._links.values():
            if not self._standing.is_welcome(link.name):
                self._placement.out.add(link.name)
            elif link not in self._above:
                link.connect()
        self._later(ANSWERS_WITHIN_S, self._open)
        self._later(TICK_S, self._tick)

    def share(self, order: BlobOrder) -> BlobShare:
        """Who brings which piece of a blob, whose target is there."""
        first = self._first[order.blob_id]
        self._service.set_path(self.digest, self._files[order.blob_id], order.target)
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
        share = BlobShare(self, first, order.size_bytes)
        if not needs_serial(order.checksums):
            self._unproved.update(share.pieces)
        return share

    def take_doubted(self, blob: str) -> dict[int, str]:
        """See `blobs.Exchange`."""
        first, size = self._first[blob], self._sizes[self._files[blob]]
        pieces = range(first, first + piece_count(size))
        doubted = {piece: self._vouched.pop(piece).blake3.hex() for piece in pieces if self._is_doubted(piece)}
        if doubted:
            self.lose(pieces)
        return {piece - first: blake3 for piece, blake3 in doubted.items()}

    async def leave(self) -> None:
        """The job is over, however it went; its blobs have ended. Others go on to be served by the service."""
        self._closing = True
        for timer in self._timers:
            timer.cancel()
        self._placement.close()
        for link in self._links.values():
            link.disconnect()
        self._forget_session()

    def adopt(self, order: Adopt) -> None:
        """A member asks this node to fetch pieces if nobody else brings them."""
        if not self._zones.homes:
            return  # it asks an earlier exchange of this digest; this one has no homes yet
        self._placement.adopt(unpack_set(order.pieces, self._pieces), order.client, self._pace.is_good)

    # --- what the files say, see Keeper

    @property
    def others(self) -> int:
        """How many other members of the cohort there are."""
        return len(self._zones.names) - 1

    def begin(self, share: BlobShare, missing: Iterable[int]) -> None:
        """See Keeper."""
        self._placement.begin(share, missing)
        self._call_above()

    def came(self, piece: int, length: int) -> None:
        """See Keeper."""
        self._movement.restart(time.monotonic())
        self._inflow += self._placement.came(piece, length)
        self._service.part(self.digest, piece, length)

    async def end(self, share: BlobShare) -> None:
        """See Keeper."""
        await self._placement.end(share)

    def have(self, piece: int, blake3: str, *, is_own: bool) -> None:
        """See Keeper."""
        self._movement.restart(time.monotonic())
        if is_own:
            self._vouched.pop(piece, None)
        of = Have(digest=self.digest, piece=piece, blake3=bytes.fromhex(blake3))
        seal = self._vouched.get(piece)
        self._service.have(seal if seal is not None and seal.blake3 == of.blake3 else of)
        self._placement.have(piece)

    def sender_of(self, piece: int, blake3: str) -> str:
        """Who vouched that a piece is this; empty for the origin, as far as this node knows."""
        seal = self._vouched.get(piece)
        return seal.signer if seal is not None and seal.blake3.hex() == blake3 else ""

    def is_doubted(self, piece: int, blake3: str) -> bool:
        """See Keeper."""
        return self._standing.is_liar(self.sender_of(piece, blake3))

    def _is_doubted(self, piece: int) -> bool:
        return piece in self._vouched and self._standing.is_liar(self._vouched[piece].signer)

    def lose(self, pieces: range) -> None:
        """Something in these is wrong, and it is not known yet what."""
        self._service.lose(self.digest, pieces)
        self._placement.lose(pieces)

    def is_first_check(self) -> bool:
        """True once."""
        first, self._is_checked = not self._is_checked, True
        return first

    def accuse(self, name: str, what: str) -> None:
        """A member vouched for bytes that the origin does not have: it is left out for this agent's life, and what it
        vouched for is passed on no more unless its file is proved. One of a cohort that is fed by another one may have
        been lied to by those who feed it: it is left out of this digest."""
        if self._standing.is_liar(name):
            return
        LOG.error("a peer lied", extra={"peer": name, "what": what, "digest": self.digest})
        if name in self._zones.above and self._level > ROOT + 1:
            self._standing.distrust(name)
        else:
            self._liars.add(name)
        self._node.observer.peer_lied()
        self._service.lose(self.digest, filter(self._is_doubted, self._unproved))
        self._look_at_members()
        self._review()

    # --- what links say, see Owner

    def link_up(self, link: Link) -> None:
        """See Owner."""
        if self._standing.is_welcome(link.name):
            self._placement.out.discard(link.name)
        self._answer(link)

    def link_arrived(self, link: Link, report: Arrived) -> None:
        """See Owner."""
        if self._standing.is_liar(report.signer):
            self._placement.refuse(link, report.number)
            return
        share = self._placement.share_of(report.number)
        if share is not None:
            if report.signer != self._node.name:  # else it is this node's own word that has come back
                self._vouched[report.number] = report.seal(self.digest)
            if report.unkept:
                self._tell_unkept(report.unkept)
            share.put(report)
        self._placement.brings_again(link)

    def link_unproved(self, link: Link, report: Unproved) -> None:
        """See Owner."""
        why = f"piece {report.number} is sealed by {report.signer!r}, whose signature that is not"
        self._tell(link, "unproved", why)
        self._placement.refuse(link, report.number)

    def link_moved(self, link: Link, report: Progress) -> None:
        """See Owner."""
        self._movement.came(time.monotonic(), report.useful_bytes)
        self._inflow += report.useful_bytes
        self._node.observer.peer_received(report.received_bytes, crosses=self._zones.crosses(link.name))

    def link_down(self, link: Link, report: Ended) -> None:
        """See Owner."""
        if report.kind == "stuck":
            self._placement.abandon(link, abandoned(report.message))
        if self._closing:
            self._forget_session()
            return
        self._answer(link)
        if report.kind in FAULTS and link.was_proved:
            self._standing.fault(link.name)
            self._node.observer.peer_at_fault(report.kind)
        refusal = link.refusal.code if link.refusal is not None else ""
        if refusal not in {"", "digest", "busy"} or report.kind in FAULTS:
            what = link.refusal.message if link.refusal is not None else report.message
            self._tell(link, refusal or report.kind, what)
        self._go_on(link, Break(report.kind, refusal, link.was_up, link.failures, link.fruitless))

    def _go_on(self, link: Link, end: Break) -> None:
        if not self._standing.is_welcome(link.name):
            self._placement.give_up(link)
            return
        following = after(end)
        if following == "again":
            self._connect(link)
            return
        if following == "give up":
            self._placement.give_up(link)
        self._later(RETRY_S[min(link.failures, len(RETRY_S)) - 1], lambda: self._connect(link))

    def _tell_unkept(self, why: str) -> None:
        if times := self._node.quiet.count((self._node.name, "unkept"), time.monotonic()):
            extra = {"why": why, "digest": self.digest, "times": times}
            LOG.warning("who vouches for a piece can't be kept", extra=extra)

    def _tell(self, link: Link, reason: str, why: str) -> None:
        if times := self._node.quiet.count((link.name, reason), time.monotonic()):
            extra = {"peer": link.name, "why": why, "digest": self.digest, "times": times}
            LOG.warning("a peer is no help", extra=extra)

    # --- decisions

    def _tick(self) -> None:
        self._later(TICK_S, self._tick)
        self._ticks += 1
        now = time.monotonic()
        lasted_s = now - self._ticked_at
        if lasted_s > TICK_S + STOOD_STILL_S:
            self._pace.stood_still(now, lasted_s)
            self._movement.restart(now)
        self._review()
        inflow = self._inflow / max(lasted_s, TICK_S)
        backlog = self._service.backlog(self.digest)
        is_ahead = self._pace.is_fed(inflow) and backlog.seconds > AHEAD_S
        self._placement.inflow(inflow, is_ahead=is_ahead)
        self._ticked_at, self._inflow = now, 0
        self._placement.offer()
        for link in self._links.values():
            if link.expected and link.keeps_out and now - max(self._pace.started, link.called_at) > OUT_AFTER_S:
                self._placement.give_up(link)
        for link in self._pace.slow(now):
            self._relieve(link)
        self._placement.take_back(backlog.behind)
        self._placement.share_out(self._pace.late(backlog.behind))
        self._placement.plead(self._pace.is_good, self._pace.patience_s())
        self._call_above()
        if self._movement.is_stalled(now, max(1, self._level - ROOT)):
            self._movement.restart(now)
            feeders = [link for link in self._above if link.expected]
            for link in feeders or self._links.values():  # the others of the cohort do the same, and bring the rest
                self._placement.move_to_origin(link)
        if self._ticks % LOOK_TICKS == 0:
            self._look_at_members()

    def _relieve(self, link: Link) -> None:
        once = self._placement.untried(link)
        if not once and self._pace.rate(link) > 0:
            return  # they were moved before, and they come
        pieces = tail(once or list(link.expected), link.begun)
        LOG.info("a slow peer is relieved", extra={"peer": link.name, "pieces": len(pieces), "digest": self.digest})
        link.relieved()
        self._placement.move(link, pieces)

    def _answer(self, link: Link) -> None:
        """What the others of the cohort have is known as soon as enough have said so."""
        if link in self._above:
            return
        is_cold = link.is_up or (link.refusal is not None and link.refusal.code == "digest")
        self._answers.heard(link.name, has_some=link.is_up and (link.is_complete or bool(link.have)), is_cold=is_cold)
        cohort = [name for name in self._links if name not in self._zones.above]
        if self._answers.suffice(name for name in cohort if self._standing.is_welcome(name)):
            self._open()

    def _open(self) -> None:
        if not self._is_open:
            self._is_open = True
            self._placement.open()
            self._call_above()

    def _call_above(self) -> None:
        """Those of the cohort above of whom something is wanted, once; later ones when they are tried again."""
        for link in self._above:
            if link.expected and not link.failures:
                self._connect(link)

    # --- members

    def _look_at_members(self) -> None:
        circle = self._node.membership.circle(self.digest)
        if not circle.near:
            return  # nobody knows at the moment
        members = {member.name: member for member in (*circle.near, *circle.above)}
        before = {name for name in self._links if self._standing.is_welcome(name)}
        self._standing.relist(circle.keys, self._links)
        for name, link in self._links.items():
            was, link.member = link.member, members.get(name, link.member)
            if link.member.address != was.address:
                link.disconnect()  # whoever has that address now
            if name not in before and self._standing.is_welcome(name):
                self._connect(link)  # it has come back
        self._receiving.set_keys(self._session, self.digest, self._keys(circle))
        self._review()

    def _review(self) -> None:
        """Who is not welcome any more, for whatever reason, brings nothing more."""
        for link in self._links.values():
            if not self._standing.is_welcome(link.name):
                self._placement.out.add(link.name)
                link.disconnect()
                if not link.is_connected:
                    self._placement.give_up(link)

    def _keys(self, circle: Circle) -> dict[str, tuple[bytes, ...]]:
        """Whose seals are good."""
        return {name: keys for name, keys in circle.keys.items() if not self._standing.is_liar(name)}

    # --- small things

    def _length(self, piece: int) -> int:
        """Bytes."""
        file = bisect_right(self._starts, piece) - 1
        return piece_range(self._sizes[file], piece - self._starts[file])[1]

    def _connect(self, link: Link) -> None:
        if not self._closing and not link.is_connected and self._standing.is_welcome(link.name):
            link.connect()

    def _forget_session(self) -> None:
        if not any(link.is_connected for link in self._links.values()):
            self._receiving.forget(self._session)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        def now() -> None:
            self._timers.discard(timer)
            what()

        timer = asyncio.get_running_loop().call_later(seconds, now)
        self._timers.add(timer)
