"""Where each missing piece of a digest is, and how it gets elsewhere.

At any time it is in one place: waiting to be asked of the origin or asked of it (`OwnPieces`), expected from one member
(`Link.expected`), or on the way from one of them to another (`Moves`). It moves only when nobody writes it any more.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache, partial
from typing import Final

from cacheagent.errors import TargetAbandoned
from cacheagent.peers.handing import Handing
from cacheagent.peers.link import Link
from cacheagent.peers.moves import Move, Moves
from cacheagent.peers.observer import PeerObserver
from cacheagent.peers.own import OwnPieces
from cacheagent.peers.rules import NO_PROGRESS_S
from cacheagent.peers.share import BlobShare
from cacheagent.peers.zones import Zones
from cacheagent.transfer.process import wait_out

HOLDERS_FEED: Final = 4
"""Members that hold everything stand in for the origin if there is one for so many: their links carry it. One that
holds a part is asked for no more of it by all of them than so many fetch. Chosen."""
MOST_SHARED_OUT: Final = 64
"""Of each late home's pieces, the first, are looked at: members of a cohort take no more at once. The last ones the
home would send last to a helper too. Chosen."""

Give = Callable[[list[int]], None]


class Placement:
    """Used on the event loop only. `here`: pieces on disk and proved. `out`: members that are not counted on."""

    def __init__(self, zones: Zones, links: Mapping[str, Link], observer: PeerObserver) -> None:
        self.here: set[int] = set()
        self.out: set[str] = set()
        self._zones = zones
        self._me = zones.me
        self._links = links
        self._cohort = [link for name, link in links.items() if name not in zones.above]
        self._observer = observer
        self._own = OwnPieces(self._ask_origin, len(self._cohort))
        self._handing = Handing(zones, links, self._own)
        self._moves = Moves()
        self._share_of: dict[int, BlobShare] = {}
        self._adopted: set[int] = set()
        """Somebody waits for this node: it asks nobody for them who may be waiting too."""
        self._tried: defaultdict[int, set[str]] = defaultdict(set)
        self._asked_for: Counter[str] = Counter()
        """What members were asked for because they hold it, in the origin's place."""
        self._shared_out: set[int] = set()
        """Asked of somebody else than their home, which was late and not slow."""

    def begin(self, share: BlobShare, missing: Iterable[int]) -> None:
        """These must come, from somewhere."""
        wanted: defaultdict[str, list[int]] = defaultdict(list)
        for piece in missing:
            self._share_of[piece] = share
            wanted[self._zones.sources[piece]].append(piece)
        for name, pieces in wanted.items():
            if name == self._me or self._adopted.issuperset(pieces):
                self._queue(pieces)
            elif name in self.out:
                self._rehome(pieces, name)
            else:
                self._links[name].want(pieces)

    def have(self, piece: int) -> None:
        """It is on disk and proved, wherever it came from."""
        self.here.add(piece)
        self._own.done([piece])
        self.offer()

    def lose(self, pieces: Iterable[int]) -> None:
        """They are not what they should be."""
        self.here.difference_update(pieces)

    async def end(self, share: BlobShare) -> None:
        """Nobody brings anything of it any more, when this returns, also if it is cancelled. Raises TargetAbandoned."""
        gone = frozenset(share.pieces)
        for link in self._links.values():
            self._move(link, gone, _nobody)
        for piece in gone:
            self._share_of.pop(piece, None)
        self._own.done(gone)
        settled = asyncio.get_running_loop().create_task(self._moves.settle(gone), name="pieces settle")
        try:
            await wait_out((settled,))
        except asyncio.CancelledError:
            raise asyncio.CancelledError from share.abandoned
        if share.abandoned is not None:
            raise share.abandoned

    def open(self) -> None:
        """It is known what the others have: the rest of what this node brings is asked of them, or of the origin."""
        self._queue(piece for piece in self._own.open() if self.share_of(piece) is not None)

    def close(self) -> None:
        """All files have ended."""
        self._own.close()
        self._moves.cancel()

    def share_of(self, piece: int) -> BlobShare | None:
        """Who wants it, if it is missing."""
        return self._share_of.get(piece) if piece not in self.here else None

    def origin_s(self) -> float:
        """How long the origin takes for a piece that this node asks for; 0 where that is not known."""
        return self._own.origin_s()

    def came(self, piece: int, length: int) -> int:
        """So much of a piece came from the origin. How much more than before."""
        return self._own.came(piece, length)

    def inflow(self, bytes_per_s: float, *, is_ahead: bool) -> None:
        """What came lately, from everywhere. `is_ahead`: this node has more of its own pieces than it can send, and
        loses nothing by waiting. What it brings in somebody's place does not wait."""
        homes = self._zones.homes
        self._own.is_held = is_ahead and all(homes[piece] == self._me for piece in self._own.waiting)
        self._own.inflow(bytes_per_s)

    def length(self, piece: int) -> int:
        """Bytes; 0 for one that nobody wants."""
        share = self._share_of.get(piece)
        return share.length(piece) if share is not None else 0

    # --- elsewhere

    def offer(self) -> None:
        """To take pieces over from homes that have not asked for them yet, if this node has asked for all of its own.
        Who has everything needs no help."""
        if self._handing.is_due() and self._has_begun():
            there = [link for link in self._links.values() if link.is_up and not link.is_complete]
            self._handing.offer({link: self.untried(link) for link in there if link.name not in self.out})

    def _has_begun(self) -> bool:
        """All that this node is the home of is here, or on its way."""
        return all(piece in self.here or piece in self._share_of for piece in self._zones.mine)

    def adopt(self, pieces: Collection[int], client: str, is_good: Callable[[Link], bool]) -> None:
        """A member asks this node to fetch pieces if nobody else brings them; by asking for those that this node is the
        home of it offers to take some. Each holder is judged once, however many there are."""
        is_good = cache(is_good)
        if handed := self._handing.part_for(client, pieces):
            self._adopted.update(handed)
            self._ask(client, handed, in_place=True)
        waiting = set(self._own.waiting)
        for piece in pieces:
            if piece in self.here or piece in self._own.at_origin or piece in self._handing.handed:
                continue
            self._adopted.add(piece)
            # Who offers to take a home's pieces says nothing of those who feed it: when to ask others it knows best.
            if piece not in waiting and self._zones.homes[piece] != self._me:
                self._take_over(piece, client, is_good)

    def _take_over(self, piece: int, client: str, is_good: Callable[[Link], bool]) -> None:
        holder = self._holder(piece)
        if holder is None:
            return
        is_handed = client == self._zones.homes[piece]  # whatever had been offered: the home waits for this node now
        if is_handed or holder.name == client:
            if is_handed:
                self._handing.taken(client)
            self.move(holder, [piece])
        elif not is_good(holder):
            if self._zones.homes[piece] == holder.name and holder.is_up and holder.name in self._zones.near:
                self._handing.plead(piece)
            else:
                self.move(holder, [piece])

    def plead(self, is_good: Callable[[Link], bool], patience_s: float) -> None:
        """With slow homes, for what they have not asked the origin for. What they keep is taken from those that are
        slow after so long still."""
        for holder, piece in self._handing.pleas(self._holder, patience_s):
            if not is_good(holder):
                self.move(holder, [piece])

    def _holder(self, piece: int) -> Link | None:
        return next((link for link in self._links.values() if piece in link.expected), None)

    def move(self, link: Link, pieces: Collection[int]) -> None:
        """To others: away from a member that may still be writing them."""
        self._move(link, pieces, lambda left: self._rehome(left, link.name))

    def share_out(self, late: Iterable[tuple[Link, float, Collection[str]]]) -> None:
        """Of each home that owes more than others, who owes the most first, a piece that it has not begun to send, to
        one of those others. Nobody takes that from its home but who is the first of them in its rank, and the others
        from that one: so all homes have as much to send."""
        busy: set[str] = set()
        for link, rest_s, helpers in late:
            free = {name for name in helpers if name not in busy}
            waiting = sorted(piece for piece in self.untried(link) if piece not in link.begun)
            for piece in waiting[1:MOST_SHARED_OUT]:  # the first may be on its way
                if piece in self._shared_out or self._zones.sources[piece] != link.name:
                    continue
                if piece in self._adopted:
                    continue  # who waits for this node may be the helper
                if helper := self._zones.before_me(piece, free):
                    busy.add(helper)
                    self._shared_out.add(piece)
                    self._move(link, [piece], partial(self._ask_helper, helper, rest_s))
                    break

    def take_back(self, behind: Collection[str]) -> None:
        """Of what was shared out, what these were asked for, who take less than others: it comes from its home."""
        for link in [self._links[name] for name in behind if name in self._links]:
            sources = self._zones.sources
            pieces = [piece for piece in self.untried(link) if sources[piece] != link.name]
            self.move(link, [piece for piece in pieces if piece in self._shared_out])

    def _ask_helper(self, name: str, wait_s: float, pieces: list[int]) -> None:
        if self._adopted.isdisjoint(pieces):
            self._links[name].want(pieces)
            self._links[name].relieved(min(wait_s, NO_PROGRESS_S))
        else:  # somebody has begun to wait for this node meanwhile: perhaps the helper, perhaps the home
            self._queue(pieces)

    def move_to_origin(self, link: Link) -> None:
        """What a member owes; one of the cohort but for a piece: if that comes, it is asked again for what waits."""
        keeps = int(link in self._cohort and len(link.expected) > 1)

        def give(left: list[int]) -> None:
            self._observer.peer_rehomed(len(left))
            self._own.add(left, instead_of=link.name)

        self._move(link, sorted(link.expected)[keeps:], give)

    def brings_again(self, link: Link) -> None:
        """Something came of it."""
        if pieces := self._own.give_back(link.name, but=self._adopted):
            link.want(pieces)

    def give_up(self, link: Link) -> None:
        """It is not counted on, and what it owes is asked of others; its connection may be there."""
        self.out.add(link.name)
        self.move(link, link.expected)

    def refuse(self, link: Link, piece: int) -> None:
        """What it brought is not believed; it writes it no more. On the move, somebody else gets it anyway."""
        if self.share_of(piece) is not None and not self._moves.is_moving(piece):
            self._rehome([piece], link.name)

    def abandon(self, link: Link, error: TargetAbandoned) -> None:
        """Whatever it was to bring may still be written, for ever: those files are of no use."""
        pieces, _ = link.let_go(link.expected)
        for share in self._shares(pieces):
            share.abandon(error)

    def untried(self, link: Link) -> list[int]:
        """What it owes and nobody else has been asked for."""
        return [piece for piece in link.expected if not self._tried[piece]]

    def _move(self, link: Link, pieces: Collection[int], give: Give) -> None:
        taken, let_go = link.let_go(pieces)
        if not taken:
            return
        shares = self._shares(taken)  # when it turns out to be stuck, they may have ended

        def free() -> None:
            if left := sorted(piece for piece in taken if self.share_of(piece) is not None):
                give(left)

        def stuck(error: TargetAbandoned) -> None:
            for share in shares:
                share.abandon(error)

        self._moves.start(Move(pieces=taken, let_go=let_go, free=free, stuck=stuck))

    def _shares(self, pieces: Iterable[int]) -> set[BlobShare]:
        return {self._share_of[piece] for piece in pieces if piece in self._share_of}

    def _rehome(self, pieces: Collection[int], without: str) -> None:
        """Each to the next of this zone in its rank who is not known to be out and had no chance yet; at last to this
        node."""
        wanted: defaultdict[str, list[int]] = defaultdict(list)
        for piece in pieces:
            is_back = self._is_back(piece, without)
            self._tried[piece].add(without)
            if is_back:
                self._links[self._zones.sources[piece]].want([piece])
            else:
                wanted[self._heir(piece, without)].append(piece)
        self._observer.peer_rehomed(len(pieces))
        for name, some in wanted.items():
            if name == self._me:
                self._queue(some)
            else:
                self._ask(name, some, in_place=True)

    def _is_back(self, piece: int, helper: str) -> bool:
        """Whether its home brings it after all, because the first who was asked instead is no help."""
        home = self._zones.sources[piece]
        if piece in self._adopted or piece not in self._shared_out or self._tried[piece] or home in {helper, *self.out}:
            return False
        return self._links[home].is_up

    def _heir(self, piece: int, without: str) -> str:
        """Who brings it instead. Where that would be this node, and the one that was to bring it is there, but slow:
        the one after it. As often as the member it is this node's connection that is slow, and then others have it."""
        if piece in self._adopted or self._zones.is_brought(piece):
            return self._me
        may_bring = self._may_bring(piece)
        heir = self._zones.next_near(piece, may_bring)
        if heir == self._me and without == self._zones.sources[piece] and without not in self.out:
            second = self._zones.second_near(piece)
            return second if second and may_bring(second) else self._me
        return heir

    def _queue(self, pieces: Iterable[int]) -> None:
        """This node brings them, for its zone or for all: from whoever of its cohort has them, from the home's zone,
        from the cohort above, or from the origin."""
        there = [link for link in self._cohort if link.is_up and link.name not in self.out]
        partial = [link for link in there if link.have]
        most = -(-HOLDERS_FEED * len(self._zones.mine) // len(self._zones.names))
        holders = self._enough([link for link in there if link.is_complete])
        own: list[int] = []
        for piece in pieces:
            some = [link.name for link in partial if piece in link.have and self._asked_for[link.name] < most] + holders
            able = [name for name in some if name not in self._tried[piece]]
            if able:
                name = self._zones.first(piece, able)
                self._asked_for[name] += 1
                self._links[name].want([piece])
            elif self._own.is_open and (far := self._zones.next_far(piece, self._may_bring(piece))):
                self._ask(far, [piece], in_place=not self._zones.is_first_asked(far, piece))
            else:
                own.append(piece)
        self._own.add(own)

    def _enough(self, holders: list[Link]) -> list[str]:
        """Names of those who hold everything, where there is one for so many members: of all, or of this zone."""
        near = [link.name for link in holders if link.name in self._zones.near]
        if len(holders) * HOLDERS_FEED >= len(self._zones.names):
            return [link.name for link in holders]
        return near if len(near) * HOLDERS_FEED >= len(self._zones.near) else []

    def _may_bring(self, piece: int) -> Callable[[str], bool]:
        """Whether somebody had no chance yet to bring it, and is not known to be out."""
        tried, out = self._tried[piece], self.out
        return lambda name: name not in tried and name not in out

    def _ask(self, name: str, pieces: list[int], *, in_place: bool) -> None:
        """Of a member; `in_place` of another, where they were asked for before, or would have been."""
        self._links[name].want(pieces, adopt=in_place)
        if in_place:
            self._links[name].relieved()  # it has to get them first

    def _ask_origin(self, piece: int) -> bool:
        share = self.share_of(piece)
        if share is not None:
            share.want(piece)
        return share is not None


def _nobody(_pieces: list[int]) -> None:
    """Who gets them when the file has ended."""
