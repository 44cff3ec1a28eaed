"""Who may take part in the exchange of one digest, and what follows when a connection is over. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final, Literal, NamedTuple

from cacheagent.peers.orders import EndKind

MOST_FAULTS: Final = 3
"""Bytes that are not what their seal says, seals that nobody signed, messages that are none: one may be an accident of
a disk or a network. Chosen."""
MOST_FRUITLESS: Final = 3
"""Connections that broke and had brought no piece: after so many the next one is no reason to wait. Chosen."""

FAULTS: Final = frozenset[EndKind]({"mismatch", "forged", "protocol"})
"""Ends of a connection that the other side is to blame for."""
NOT_YET: Final = frozenset({"digest", "busy", "member", "signature"})
"""Refusals that may be over in a moment: it has not heard of this node, or of its new key."""

Next = Literal["again", "wait", "give up"]
"""`again`: at once, with all that it owes. `wait`: it is tried again later, and keeps what it owes for the moment.
`give up`: what it owes is asked of others; it is tried again later."""


class Break(NamedTuple):
    """What is known of a member whose connection is over. `failures`: in a row. `fruitless`: of them, connections that
    were let in and brought no piece. `refusal`: its code, or empty."""

    kind: EndKind
    refusal: str
    was_up: bool
    failures: int
    fruitless: int


def after(end: Break) -> Next:
    """What follows for a member that is still welcome."""
    if end.was_up and end.failures == 1 and end.fruitless < MOST_FRUITLESS and not end.refusal:
        return "again"
    if not end.was_up and (end.refusal in NOT_YET or end.kind == "connect"):
        return "wait"
    return "give up"


class Standing:
    """`liars`: members that vouched for bytes which the origin does not have; for this agent's life and all digests, so
    others add to it."""

    def __init__(self, liars: Collection[str]) -> None:
        self._liars = liars
        self._distrusted: set[str] = set()
        self._faults: Counter[str] = Counter()
        self._unlisted: frozenset[str] = frozenset()

    def is_welcome(self, name: str) -> bool:
        """Whether anything is asked of it, and believed."""
        return not self.is_liar(name) and name not in self._unlisted and self._faults[name] < MOST_FAULTS

    def is_liar(self, name: str) -> bool:
        """Whether its seals are good no more, whoever hands them on."""
        return name in self._liars or name in self._distrusted

    def fault(self, name: str) -> None:
        """It is to blame for the end of a connection."""
        self._faults[name] += 1

    def distrust(self, name: str) -> None:
        """It passed on what somebody else may have lied about."""
        self._distrusted.add(name)

    def relist(self, listed: Collection[str], among: Iterable[str]) -> None:
        """Who of the members is on the list of those that want the digest now: who left it may come back."""
        self._unlisted = frozenset(name for name in among if name not in listed)
