"""How links are shared while much flows at once: evenly, by filling them in a few passes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fanout.simulate.fleet import Floats, Tree
from benchmarks.fanout.simulate.state import State

PASSES = 2
FILLS = 4
"""Passes that share evenly, and then passes that leave no link empty through which something could flow."""
LEAST = 1.0
"""Bytes. With less to send a flow is none."""


class Links:
    """Of all nodes and of the origin, both ways. A flow inside a zone has one part of a link. All that a source gets
    along edges has one, and so has all that a source gives along edges to one group: a piece after another comes, each
    from one node and for one.
    """

    def __init__(self, tree: Tree) -> None:
        size = tree.pieces[0].size
        self._into = tree.into
        pairs = tree.of * len(tree.pieces) + tree.into // size
        lanes, self._lane = np.unique(pairs, return_inverse=True)
        self._lane_of = lanes // len(tree.pieces)

    def share(
        self, state: State, wanted: tuple[Floats, Floats, Floats], capacity: Floats, origin: float
    ) -> tuple[Floats, Floats, Floats]:
        """What of the wanted flows in one step of time. `capacity`: bytes of each node's link, each way; `origin`: of
        the origin's.
        """
        left = _Left(state, capacity, origin, wanted)
        for _ in range(PASSES):
            left.take(*self._even(left))
        for _ in range(FILLS):
            left.take(*left.part())
        return wanted[0] - left.inner, wanted[1] - left.edges, wanted[2] - left.first

    def _even(self, left: _Left) -> tuple[Floats, Floats, Floats]:
        """What everybody can have if all that flow through a link have as much of what is left of it."""
        is_open = (left.inner > LEAST).astype(np.float32)
        edge_open, first_open = left.edges > LEAST, left.first > LEAST
        into = _count(self._into, edge_open, left.first.size)
        lanes = _count(self._lane, edge_open, len(self._lane_of))
        out = _count(self._lane_of, lanes > 0, left.first.size).reshape(left.first.shape)
        gets = ((into.reshape(left.first.shape) > 0) | first_open).sum(axis=1)
        send = left.sends / np.maximum(((is_open @ left.ones) + out).sum(axis=1), 1)
        receive = (left.receives / np.maximum(is_open.sum(axis=(1, 2)) + gets, 1)).astype(np.float32)
        inner = np.minimum(np.minimum(send[:, None, :, None], receive[:, None, None, :]), left.inner)
        lent = np.minimum(
            send.reshape(-1)[left.node_of] / np.maximum(lanes, 1)[self._lane],
            receive.reshape(-1)[left.node_into] / np.maximum(into, 1)[self._into],
        )
        first = np.minimum(left.origin / max(1, int(first_open.sum())), receive[:, None])
        return inner, np.minimum(lent, left.edges), np.minimum(first, left.first).astype(np.float32)


class _Left:
    """Of links, and of what is wanted, in one step of time."""

    def __init__(self, state: State, capacity: Floats, origin: float, wanted: tuple[Floats, Floats, Floats]) -> None:
        self.sends, self.receives, self.origin = capacity.copy(), capacity.copy(), origin
        self.inner, self.edges, self.first = (each.copy() for each in wanted)
        self.node_of, self.node_into = state.node_of, state.node_into
        self.ones = np.ones(capacity.shape[1], np.float32)

    def part(self) -> tuple[Floats, Floats, Floats]:
        """As large a part of each flow as fits through the fuller one of its links."""
        out, into, origin = self._loads(self.inner, self.edges, self.first)
        send = np.minimum(1, self.sends / np.maximum(out, 1))
        receive = np.minimum(1, self.receives / np.maximum(into, 1))
        inner = self.inner * np.minimum(send[:, None, :, None], receive[:, None, None, :])
        edges = self.edges * np.minimum(send.reshape(-1)[self.node_of], receive.reshape(-1)[self.node_into])
        first = self.first * np.minimum(np.float32(self.origin / max(origin, 1, self.origin)), receive[:, None])
        return inner, edges, first

    def take(self, inner: Floats, edges: Floats, first: Floats) -> None:
        """These flow."""
        out, into, origin = self._loads(inner, edges, first)
        self.sends = np.maximum(self.sends - out, 0)
        self.receives = np.maximum(self.receives - into, 0)
        self.origin = max(0.0, self.origin - origin)
        self.inner -= inner
        self.edges -= edges
        self.first -= first

    def _loads(self, inner: Floats, edges: Floats, first: Floats) -> tuple[Floats, Floats, float]:
        """Of the links of nodes, out and in, and of the origin's."""
        shape = self.sends.shape
        out = (inner @ self.ones).sum(axis=1) + _count(self.node_of, edges, self.sends.size).reshape(shape)
        into = inner.sum(axis=(1, 2)) + first.sum(axis=1)
        return out, into + _count(self.node_into, edges, self.sends.size).reshape(shape), float(first.sum())


def _count(index: NDArray[np.int64], among: NDArray[Any], size: int) -> Floats:
    return np.bincount(index, among, size).astype(np.float32)
