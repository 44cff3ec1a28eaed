"""Who loses what it owes, and when: nobody knows that a machine is gone or slow, until it is late. Seconds, bytes."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from benchmarks.fanout.simulate.fleet import Fleet, Floats
from benchmarks.fanout.simulate.state import ALL, State
from cacheagent.peers.rules import FACTOR, FULL_FACTOR, LAG_S, LAST_S, PATIENCE_S

LOOK_S = 0.5
"""From one look at the others to the next."""
HALF = 0.5
"""Of the rest is taken from who is late, each time; and a piece at least."""
LAST_PIECES = 2
"""On their way, and kept: `LAST_BYTES` of the rules in pieces of any size."""
FAR_PIECES = 6
"""`FAR_BYTES` of the rules, in the same way."""
SILENT_S = 25.0
"""A connection whose other side has vanished ends: after ten seconds the kernel asks, three times in five seconds
each."""


class Patience:
    """The looks of all nodes, as one: who is late is so for everybody. Only who has a slow link or is gone ever is:
    what else delays somebody in the model delays others as much.
    """

    def __init__(self, fleet: Fleet, state: State) -> None:
        tree = fleet.tree
        self._state = state
        self._quick = fleet.speed == 1
        self._died_at = np.full(tree.real.shape, np.inf)
        self._relieved_at = np.zeros(tree.real.shape)
        self._fed_again_at = np.zeros(tree.of.size)
        self._into = tree.into
        group_of = tree.of // tree.pieces[0].size
        pairs = tree.into * len(tree.pieces) + group_of
        self._family = np.unique(pairs, return_inverse=True)[1]
        """Edges into one source from members of one group: these stand in for each other."""

    def died(self, who: NDArray[np.bool_], now: float) -> None:
        """These vanish. Nobody hears of it."""
        self._died_at[who] = now

    def look(self, now: float) -> None:
        """Who was late for long enough loses half of the rest, or, if its connections end, all of it."""
        if not (self._quick & self._state.alive).all():
            self._relieve(now)
            self._feed_again(now)

    def _relieve(self, now: float) -> None:
        """Inside a zone: who has vanished, and who is slow."""
        is_gone = np.isfinite(self._died_at)
        since = np.maximum(self._relieved_at, np.where(is_gone, self._died_at, 0))
        is_over = is_gone & (now - self._died_at >= SILENT_S)
        due = (is_gone | (~self._quick & self._is_slow(now))) & ((now - since >= PATIENCE_S) | is_over)
        for group, place in np.argwhere(due):
            self._relieved_at[group, place] = now
            for role in range(self._state.owed.shape[1]):
                self._rehome(group, role, place, 1.0 if is_over[group, place] else HALF)

    def _is_slow(self, now: float) -> NDArray[np.bool_]:
        """As a member of its zone sees it, by `cacheagent.peers.rules`, while the others together bring what they ever
        do, which makes it wait longest; rates are those of all the time.
        """
        state = self._state
        takers = (state.alive & self._quick).astype(np.float32)
        others = np.maximum(takers.sum(axis=1, keepdims=True) - takers, 1)
        delivered = (state.delivered.sum(axis=1) * takers[:, None]).sum(axis=2) / others
        owed = np.maximum(state.owed.sum(axis=1) - delivered, 0)
        rest_s = owed / np.maximum(delivered, 1) * now
        usual, usual_s = (self._middle(each) for each in (delivered, rest_s))
        is_behind = (delivered * FULL_FACTOR < usual) & (usual - delivered > LAG_S * usual / now)
        is_last = (owed <= LAST_PIECES * state.piece_bytes) & (rest_s < LAST_S)
        is_slow: NDArray[np.bool_] = is_behind & (rest_s >= np.maximum(PATIENCE_S, FULL_FACTOR * usual_s)) & ~is_last
        return is_slow

    def _middle(self, of: NDArray[np.float64]) -> NDArray[np.float64]:
        """The median of those that are alive, by group."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a group that is all gone has none
            middle: NDArray[np.float64] = np.nanmedian(np.where(self._state.alive, of, np.nan), axis=1, keepdims=True)
        return middle

    def _rehome(self, group: int, role: int, place: int, part: float) -> None:
        """Part of what a source has not sent to everybody becomes the others', evenly, as hashing gives it."""
        state = self._state
        others = state.alive[group] & self._quick[group] & (state.owed[group, role] > 0)
        others[place] = False
        if not others.any():
            return
        before = state.owed[group, role].copy()
        rest = before[place] - state.delivered[group, role, place][others].min()
        if rest <= before[place] * (1 - ALL):
            return
        rest = min(rest, max(rest * np.float32(part), state.piece_bytes))
        state.owed[group, role, place] -= rest
        state.arrived[group, role, place] = min(state.arrived[group, role, place], state.owed[group, role, place])
        state.owed[group, role][others] += rest / others.sum()
        growth = np.ones(state.owed.shape, np.float32)
        growth[group, role] = state.owed[group, role] / np.maximum(before, 1)
        state.edge_owed *= growth.reshape(-1)[self._into]

    def _feed_again(self, now: float) -> None:
        """Between zones and cohorts, where one owes another little, a piece now and then."""
        state = self._state
        died_at = self._died_at.reshape(-1)[state.node_of]
        is_gone = np.isfinite(died_at)
        is_odd = is_gone | ~self._quick.reshape(-1)[state.node_of]
        rest = state.edge_owed - state.edge_sent
        is_open = (rest > state.edge_owed * (1 - ALL)) & state.alive.reshape(-1)[state.node_into]
        if not (is_odd & is_open).any():
            return
        silent_s = np.where(is_gone, now - died_at, 0)
        is_over = silent_s >= SILENT_S
        is_patient = now - np.maximum(self._fed_again_at, np.where(is_gone, died_at, 0)) < PATIENCE_S
        due = is_odd & is_open & (is_over | (~is_patient & self._is_far_behind(rest, is_gone, silent_s, now)))
        able = ~is_odd & (state.edge_owed > 0)
        heirs = np.bincount(self._family, able)[self._family]
        part = np.minimum(rest, np.maximum(rest * np.where(is_over, 1.0, HALF), state.piece_bytes))
        moved = np.where(due & (heirs > 0), part, 0).astype(np.float32)
        self._fed_again_at[moved > 0] = now
        gained = np.bincount(self._family, moved)[self._family] / np.maximum(heirs, 1)
        state.edge_owed += np.where(able, gained, -moved).astype(np.float32)

    def _is_far_behind(
        self, rest: Floats, is_gone: NDArray[np.bool_], silent_s: NDArray[np.float64], now: float
    ) -> NDArray[np.bool_]:
        """While most of the others still owe something: by so many pieces. Afterwards whoever needs seconds for the
        rest is, and who is silent after ten of them. A rest of less than a piece is one that so many of those like it
        owe.
        """
        state, into = self._state, self._into
        edges = np.bincount(into, minlength=state.owed.size)[into]
        owing = np.bincount(into, np.clip(rest / state.piece_bytes, 0, 1))[into]
        usual = np.bincount(into, state.edge_sent)[into] / edges
        usual_rest = np.bincount(into, rest)[into] / edges
        is_busy = owing > edges / 2
        rest_s = rest / np.maximum(state.edge_sent, 1) * now
        usual_s = np.where(is_busy, usual_rest / np.maximum(usual, 1) * now, 0)
        is_behind = (usual - state.edge_sent > FAR_PIECES * state.piece_bytes) | ~is_busy
        is_slow = (rest_s >= np.maximum(PATIENCE_S, FACTOR * usual_s)) & (state.edge_sent * FACTOR < usual)
        is_quiet: NDArray[np.bool_] = np.where(is_gone, is_busy | (silent_s >= LAST_S), is_slow)
        return is_behind & is_quiet
