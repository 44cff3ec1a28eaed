"""A node among its peers: one server, one receiver, and an exchange for each digest that is being downloaded."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from cacheagent.cohorts import COHORT, Circle
from cacheagent.config import PeersSettings
from cacheagent.model import SMALL_FILE_BYTES, piece_count
from cacheagent.peers.budget import share
from cacheagent.peers.exchange import Exchange
from cacheagent.peers.keys import NodeKeys, load_or_make_keys
from cacheagent.peers.member import Membership, StaticMembership
from cacheagent.peers.node import PeerNode
from cacheagent.peers.observer import PeerObserver
from cacheagent.peers.orders import Adopt
from cacheagent.peers.protocol import MOST_PIECES
from cacheagent.peers.receiving import Receiving
from cacheagent.peers.service import Service, Shown
from cacheagent.peers.vouchers import Vouchers
from cacheagent.plan import Plan
from cacheagent.store import Store
from cacheagent.store.layout import Layout
from cacheagent.threads import in_thread
from cacheagent.transfer.pool import WorkerPool

LOG: Final = logging.getLogger(__name__)

MOST_FILES: Final = 16 * 1024
"""Large files of one digest that are exchanged. What has more of them comes from its origin alone: where they all lie
is said to the server process in one message, of 2 MB then. Chosen."""


class Swarm:
    """Used on the event loop only."""

    def __init__(self, node: PeerNode, liars: set[str]) -> None:
        """`liars`: names of members that were caught, which exchanges add to."""
        self._node = node
        self._exchanges: dict[str, Exchange] = {}
        self._liars = liars
        node.service.on_adopt = self._adopt

    async def join(self, digest: str, plan: Plan) -> Exchange | None:
        """Take part in the exchange of a digest, or not: nobody else wants it, or there is nothing to exchange."""
        circle = self._node.membership.circle(digest)
        large = {blob: file.size_bytes for blob, file in plan.blobs.items() if file.size_bytes >= SMALL_FILE_BYTES}
        names = {member.name for member in (*circle.near, *circle.above)}
        alone = len(names) < 2 or self._node.name not in names
        if alone or not plan.large or digest in self._exchanges or self._is_too_large(digest, large):
            return None
        exchange = Exchange(digest, large, circle, self._node, self._liars)
        self._exchanges[digest] = exchange
        try:
            await exchange.start(self._shown(digest, large))
        except BaseException:
            await self.leave(exchange, complete=False)
            raise
        return exchange

    def origin_share(self, digest: str) -> int:
        """See `blobs.Peers`."""
        return self._node.origin_share(digest)

    def _is_too_large(self, digest: str, large: dict[str, int]) -> bool:
        pieces = sum(map(piece_count, large.values()))
        why = ""
        if len(large) > MOST_FILES:
            why = f"it has {len(large)} files of 1 MiB and more, and nodes exchange at most {MOST_FILES} of one version"
        elif pieces > MOST_PIECES:
            why = f"it has {pieces} pieces, and nodes exchange at most {MOST_PIECES} of one version"
        if why:
            LOG.warning("a version comes from its origin alone: %s", why, extra={"digest": digest})
        return bool(why)

    async def leave(self, exchange: Exchange, *, complete: bool) -> None:
        """The download is over. What is complete is served on."""
        del self._exchanges[exchange.digest]
        await exchange.leave()
        if complete:
            self._node.service.expect_publish(exchange.digest)
        else:
            self._node.service.withdraw(exchange.digest)

    def _shown(self, digest: str, large: dict[str, int]) -> Shown:
        known = {blob: hashes for blob in large if (hashes := self._node.store.blob_hashes(blob)) is not None}
        return Shown(
            digest=digest,
            blobs=large,
            paths={blob: str(self._node.store.blob_path(blob)) for blob in known},
            here={blob: tuple(map(bytes.fromhex, hashes.pieces)) for blob, hashes in known.items()},
        )

    def _adopt(self, order: Adopt) -> None:
        if (exchange := self._exchanges.get(order.digest)) is not None:
            exchange.adopt(order)


class NodePeers:
    """What an agent has of its peers. `membership`: who they are; the configuration's list until somebody knows
    better. `sharers`: for one of how many nodes this one counts at the origin of a digest; 0: not known. `is_private`:
    whether a digest of the store is not to be exchanged, whoever is listed. `cohort`: members of one at most, where the
    configuration says who they are. `liars`: names of members that vouched for bytes which the origin does not have,
    since this began."""

    def __init__(
        self,
        settings: PeersSettings,
        root: Path,
        observer: PeerObserver,
        is_private: Callable[[Store, str], bool],
        cohort: int = COHORT,
    ) -> None:
        listed = StaticMembership(settings.members, settings.node_name, cohort)
        self.membership: Membership = listed
        self.sharers: Callable[[str], int] = lambda digest: listed.circle(digest).sharers
        self.keys: NodeKeys | None = None
        self.is_private = is_private
        self.liars: set[str] = set()
        self.service: Service | None = None
        self._settings = settings
        self._root = root
        self._observer = observer
        self._store: Store | None = None

    def circle(self, digest: str) -> Circle:
        """See Membership."""
        if self._store is None or self.is_private(self._store, digest):
            return Circle()
        return self.membership.circle(digest)

    @asynccontextmanager
    async def open(self, store: Store, pool: WorkerPool) -> AsyncIterator[Swarm]:
        """Listen for the length of the block. Raises ConfigError, DiskFault, StoreError."""
        self.keys = await in_thread(partial(load_or_make_keys, self._root))
        key = self.keys.current
        self._store = store
        vouchers = Vouchers(Layout(self._root))
        await in_thread(lambda: vouchers.tidy(lambda digest: store.record(digest) is not None))
        self.service = Service(self._settings, key, store, vouchers, self, self._observer)
        tls = self._settings.tls
        receiving = Receiving(pool.lend, me=self._settings.node_name, tls=tls, seals_of=vouchers.path)
        receiving.start()
        node = PeerNode(
            name=self._settings.node_name,
            key=key,
            service=self.service,
            receiving=receiving,
            store=store,
            membership=self,
            observer=self._observer,
            origin_share=lambda digest: share(int(self._settings.origin_budget_bytes_per_s), self.sharers(digest)),
        )
        told = {"listen": self.service.address, "key": self.keys.public_text, "tls": tls}
        LOG.info("listening for peers", extra=told)
        try:
            yield Swarm(node, self.liars)
        finally:
            await self.service.close()
            await receiving.close()

    def look(self) -> None:
        """The members may have changed."""
        if self.service is not None:
            self.service.look()

    async def run(self) -> None:
        """Until cancelled; while it is open."""
        assert self.service is not None
        await self.service.run()
