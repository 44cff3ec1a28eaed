"""What has come where: bytes, by source and by edge of the tree. And what is whole, so that it may be sent on."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from benchmarks.fanout.simulate.fleet import HOME, Fleet, Floats
from cacheagent.model import Value
from cacheagent.peers.own import AT_ORIGIN

ALL = 1 - 1e-5
"""Of a share: whoever has that has it all; sums of 32-bit numbers are no better."""


class Parameters(Value):
    """`size_bytes`, `pieces`: of the model. `link_bytes_per_s`: payload that a node's link carries; `origin_links`: of
    the origin. `step_bytes`: what is forwarded at once of what the origin sends. `hop_s`: from a step's arrival at a
    source to the moment when it goes out. `start_s`: before the first byte; `finish_s`: after the last;
    `uneven_s`: that a fleet needs more than flows that share links evenly, however many nodes and levels it has.
    """

    size_bytes: float
    pieces: int
    link_bytes_per_s: float
    origin_links: float
    step_bytes: float
    hop_s: float
    start_s: float
    finish_s: float
    uneven_s: float = 0.0

    @property
    def limit_s(self) -> float:
        """What the links permit."""
        return self.size_bytes / self.link_bytes_per_s / min(1.0, self.origin_links)


class State:
    """Arrays of (group, role, place) and, for `delivered`, of the place of who gets it too.

    `owed`: what a source is to bring into its zone; `arrived`: what of that is here, from the origin or by edges.
    `edge_owed`, `edge_sent`: of each edge. `origin`: sources that the origin feeds. `listens`: 1 where a source sends
    to that place, 0 elsewhere. `fed`: what each node has from sources of its zone.
    """

    def __init__(self, fleet: Fleet, parameters: Parameters) -> None:
        tree = fleet.tree
        self.piece_bytes = np.float32(parameters.size_bytes / parameters.pieces)
        self.owed: Floats = tree.pieces * self.piece_bytes
        self.arrived: Floats = np.zeros_like(self.owed)
        self.delivered: Floats = np.zeros((*self.owed.shape, self.owed.shape[2]), np.float32)
        self.edge_owed: Floats = tree.shared * self.piece_bytes
        self.edge_sent: Floats = np.zeros_like(self.edge_owed)
        self.origin: NDArray[np.bool_] = np.zeros(self.owed.shape, bool)
        self.origin[tree.is_root, HOME] = True
        self.alive = tree.real.copy()
        self.fed: NDArray[np.float64] = np.zeros(tree.real.shape)
        self.origin_sent = 0.0
        self._tree = tree
        self._steps = _steps(fleet, parameters)
        self._past: deque[Floats] = deque()
        self.see()

    def see(self) -> None:
        """Who is alive has changed."""
        pairs = self.alive[:, :, None] & self.alive[:, None, :] & ~np.eye(self.alive.shape[1], dtype=bool)
        self.listens = pairs[:, None].astype(np.float32)
        size = self.alive.shape[1]
        roles = self.owed.shape[1]
        of, into = (edge // (roles * size) * size + edge % size for edge in (self._tree.of, self._tree.into))
        self.node_of, self.node_into = of, into
        self.edge_is_up = (self.alive.reshape(-1)[of] & self.alive.reshape(-1)[into]).astype(np.float32)

    def ready(self, late: int) -> Floats:
        """What sources may send: whole steps, as they were so many steps of time ago; the last step of a share is a
        short one.
        """
        self._past.append(self.arrived.copy())
        if len(self._past) <= late:
            return np.zeros_like(self.arrived)
        old = self._past.popleft()
        whole = np.floor(old / self._steps) * self._steps
        ready: Floats = np.where(old >= self.owed * np.float32(ALL), self.owed, whole)
        return np.minimum(ready, self.owed)

    def wanted(self, ready: Floats) -> tuple[Floats, Floats, Floats]:
        """What could flow now, if links were not: to members of the zone, along edges, and from the origin. Of what a
        source gives along an edge as large a part is ready as of all that it brings.
        """
        inner: Floats = np.maximum(ready[..., None] - self.delivered, 0) * self.listens
        part = (ready / np.maximum(self.owed, 1)).reshape(-1)[self._tree.of]
        edges: Floats = np.maximum(self.edge_owed * part - self.edge_sent, 0) * self.edge_is_up
        origin: Floats = np.maximum(self.owed - self.arrived, 0) * self.origin * self.alive[:, None]
        return inner, edges, origin

    def add(self, inner: Floats, edges: Floats, origin: Floats) -> None:
        """It has."""
        self.delivered += inner
        self.fed += inner.sum(axis=(1, 2))
        self.edge_sent += edges
        into = np.bincount(self._tree.into, edges, self.owed.size).reshape(self.owed.shape)
        self.arrived += (origin + into).astype(np.float32)
        self.origin_sent += float(origin.sum())

    def has(self) -> NDArray[np.float64]:
        """Bytes of the model, of each node."""
        has: NDArray[np.float64] = self.fed + self.arrived.sum(axis=1)
        return has


def _steps(fleet: Fleet, parameters: Parameters) -> Floats:
    """What each source sends on at once, in bytes. Only what the origin sends is passed on in parts; what a member
    has sent, when it is whole and proved. A home asks the origin for two pieces at once, and so whoever it feeds gets
    two at once, of which neither is whole much sooner than both. From the third level on pieces come one by one.
    """
    shape = fleet.tree.pieces.shape
    piece = parameters.size_bytes / parameters.pieces
    steps = np.full(shape, piece, np.float32)
    steps[fleet.tree.is_root] = AT_ORIGIN * piece
    steps[fleet.tree.is_root, HOME] = parameters.step_bytes
    steps[fleet.tree.level == 2, HOME] = AT_ORIGIN * piece
    return steps
