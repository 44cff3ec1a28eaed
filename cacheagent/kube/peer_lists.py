"""With whom this node exchanges which versions: the controller's lists, as one watch of those that this node is on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from cacheagent.cohorts import Circle
from cacheagent.kube.api import MODEL_CACHE_PEERS, KubeApi, KubeError, Object
from cacheagent.kube.convert import spec_of
from cacheagent.kube.mirror import Mirror
from cacheagent.kube.names import member_label
from cacheagent.kube.objects import ModelCachePeersSpec, PeerBelow, PeerMember
from cacheagent.member import Member, keys_of

LOG: Final = logging.getLogger(__name__)

HOLD_S: Final = 5.0
"""The longest that a fetch waits until this node is on the list of its version: who begins before has nobody to
exchange with. A controller answers within a second or two; one that is away keeps no model from its pods. Chosen."""


class PeerLists:
    """A `Membership`. One event loop. `me`: how this node's own agent reports itself, its present key first; `changed`
    is called with news, and when a wait is over."""

    def __init__(self, api: KubeApi, me: Member, *, changed: Callable[[], None], hold_s: float | None = None) -> None:
        self.me = me
        self.specs: tuple[ModelCachePeersSpec, ...] = ()
        """As they are now, or as they were kept before the API server was reached."""
        self.told: Callable[[], None] = lambda: None
        """Called when the lists are others than before."""
        self._changed = changed
        self._hold_s = HOLD_S if hold_s is None else hold_s
        self._circles: dict[str, Circle] = {}
        self._until: dict[str, float] = {}
        self._released: set[str] = set()
        self._mirror = Mirror(api, MODEL_CACHE_PEERS, labels=member_label(me.name), on_change=self._heard)

    def circle(self, digest: str) -> Circle:
        """See Membership: nobody where nobody else wants it, or nobody has said so."""
        return self._circles.get(digest, Circle())

    def sharers(self, digest: str) -> int:
        """See `Circle.sharers`; 0: nobody has said so yet."""
        if digest not in self._circles:
            return 1 if self._mirror.is_synced else 0
        return self._circles[digest].sharers

    def start(self, kept: Iterable[ModelCachePeersSpec]) -> None:
        """What was known when the last agent ended holds until the API server has been asked."""
        self._take(kept)

    async def run(self) -> None:
        """Until cancelled. While the API server is away, what is known is used."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mirror.run())
            await self._mirror.synced()
            self._heard(None, None)  # also where there is none: what was kept is over

    def wait(self, digest: str) -> bool:
        """Whether a fetch of it is to wait a moment for its list. A version waits once, from when it is first asked
        for."""
        if digest in self._released:
            return False
        now = time.monotonic()
        if digest not in self._until:
            self._until[digest] = now + self._hold_s
            asyncio.get_running_loop().call_later(self._hold_s, self._changed)
        if not self._is_known(digest) and now < self._until[digest]:
            return True
        self._until.pop(digest)
        self._released.add(digest)
        return False

    def forget(self, wanted: set[str]) -> None:
        """All but these versions may wait again when they are wanted again."""
        self._released &= wanted
        self._until = {digest: until for digest, until in self._until.items() if digest in wanted}

    def _is_known(self, digest: str) -> bool:
        """Whether others reach this node, and believe what it signs."""
        return any(
            each.name == self.me.name and each.address == self.me.address and self.me.keys[0] in each.keys
            for each in self.circle(digest).near
        )

    def _heard(self, _before: Object | None, _after: Object | None) -> None:
        found = []
        for item in sorted(self._mirror.items.values(), key=_age):
            try:
                found.append(spec_of(item, ModelCachePeersSpec))
            except KubeError as error:
                LOG.warning("a list of peers is left out: %s", error)
        self._take(found)
        self.told()
        self._changed()

    def _take(self, specs: Iterable[ModelCachePeersSpec]) -> None:
        """Where several name a version, the newest holds: the others are about to go."""
        self.specs = tuple(specs)
        self._circles = {}
        for spec in self.specs:
            self._circles.update(dict.fromkeys(spec.digests, _circle_of(spec)))


def _circle_of(spec: ModelCachePeersSpec) -> Circle:
    return Circle(
        near=_members_of(spec.members),
        above=_members_of(spec.above),
        below=_keys_of(spec.below),
        level=spec.level,
        nodes=spec.nodes,
    )


def _keys_of(below: Iterable[PeerBelow]) -> dict[str, tuple[bytes, ...]]:
    keys = {}
    for each in below:
        try:
            keys[each.name] = keys_of(each.name, each.key)
        except ValueError as error:
            LOG.warning("a peer is left out: %s", error)
    return keys


def _members_of(listed: Iterable[PeerMember]) -> tuple[Member, ...]:
    members = []
    for each in listed:
        try:
            members.append(Member(name=each.name, address=each.address, key=each.key, zone=each.zone))
        except ValueError as error:
            LOG.warning("a peer is left out: %s", error)
    return tuple(members)


def _age(item: Object) -> int:
    version = str(item["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdigit() else 0
