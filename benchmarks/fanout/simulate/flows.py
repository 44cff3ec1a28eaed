"""The exchange as flows: in each step of time every link is shared fairly among those who have something to send.

A flow is what one home owes one member, what the origin owes a home, or what a home owes the home of the same share in
a cohort below. It may carry what has arrived at its beginning in whole steps (a home forwards buffers, not bytes), some
time after it arrived. Shares are found by filling links evenly, in a few passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fanout.simulate.fleet import Fleet, Scene
from cacheagent.model import Value
from cacheagent.peers.rules import PATIENCE_S

Array = NDArray[np.float32]

PASSES = 4
STEPS = 1200
"""Of time, in what the links permit."""
RELIEVED = 0.9
LONGEST = 6
"""In times of what the links permit: whoever is not done by then never is."""


class Parameters(Value):
    """`size_bytes`, `pieces`: of the model. `link_bytes_per_s`: payload that a node's link carries; `origin_links`: of
    the origin. `step_bytes`: what is forwarded at once. `hop_s`: from a step's arrival at its home to the moment when
    it goes out. `start_s`: before the first byte; `finish_s`: after the last.
    """

    size_bytes: float
    pieces: int
    link_bytes_per_s: float
    origin_links: float
    step_bytes: float
    hop_s: float
    start_s: float
    finish_s: float

    @property
    def limit_s(self) -> float:
        """What the links permit."""
        return self.size_bytes / self.link_bytes_per_s / min(1.0, self.origin_links)


class Result(Value):
    """`times_s`: of all nodes that are neither slow nor dead, in order. `origin_bytes`: all that the origin sent."""

    times_s: tuple[float, ...]
    origin_bytes: float

    def at(self, part: float) -> float:
        """The time by which that part of the nodes is done."""
        return self.times_s[min(len(self.times_s) - 1, int(part * len(self.times_s)))]


def simulate(scene: Scene, parameters: Parameters) -> Result:
    """Run it until every node that counts has everything."""
    fleet = Fleet(scene, parameters.pieces)
    state = _State(fleet, parameters)
    counts = fleet.real & (fleet.speed == 1) & np.isinf(fleet.dies_at)
    step_s = parameters.limit_s / STEPS
    done_at = np.full(fleet.real.shape, np.inf)
    for step in range(1, STEPS * LONGEST):
        now = step * step_s
        state.advance(now, step_s)
        done_at[state.is_done() & np.isinf(done_at)] = now
        if np.isfinite(done_at[counts]).all():
            break
    times = np.sort(done_at[counts]) + parameters.start_s + parameters.finish_s
    return Result(times_s=tuple(float(time) for time in times), origin_bytes=float(state.origin_sent))


class _State:
    """Bytes, by (cohort, home) and (cohort, home, member). `owed`: of each home's share as it is now."""

    def __init__(self, fleet: Fleet, parameters: Parameters) -> None:
        self._fleet = fleet
        self._parameters = parameters
        self._owed: Array = fleet.pieces * np.float32(parameters.size_bytes / parameters.pieces)
        self._arrived: Array = np.zeros_like(self._owed)
        cohorts, width = fleet.real.shape
        self._delivered: Array = np.zeros((cohorts, width, width), np.float32)
        self._listens = fleet.real[:, None, :] & fleet.real[:, :, None] & ~np.eye(width, dtype=bool)
        self._feeder = fleet.feeder
        self._has_feeder = fleet.feeder >= 0
        self._past: list[Array] = []
        self._alive = fleet.real.copy()
        self._is_relieved = np.zeros_like(fleet.real)
        self.origin_sent = 0.0

    def is_done(self) -> NDArray[np.bool_]:
        """Which nodes have everything."""
        done: NDArray[np.bool_] = self._arrived + self._delivered.sum(axis=1) >= self._parameters.size_bytes * 0.9999
        return done

    def advance(self, now: float, step_s: float) -> None:
        """One step of time: who dies, who is relieved, and then what flows."""
        self._lose(now)
        self._relieve(now)
        ready = self._ready(step_s)
        capacity = self._fleet.speed * np.float32(self._parameters.link_bytes_per_s * step_s) * self._alive
        wanted = np.where(self._listens & self._alive[:, None, :], ready[:, :, None] - self._delivered, 0)
        inner, outer = self._share(np.maximum(wanted, 0), np.maximum(self._feedable(ready), 0), capacity, step_s)
        self._delivered += inner
        self._arrived += outer
        self.origin_sent += float(outer[~self._has_feeder].sum())

    def _ready(self, step_s: float) -> Array:
        """What homes may send: whole steps, as they were a hop ago; the last step of a share is a short one."""
        self._past.append(self._arrived.copy())
        late = round(self._parameters.hop_s / step_s)
        while len(self._past) > late + 1:
            self._past.pop(0)
        old = self._past[0] if len(self._past) > late else np.zeros_like(self._arrived)
        whole = np.floor(old / self._parameters.step_bytes) * self._parameters.step_bytes
        ready: Array = np.where(old >= self._owed * (1 - 1e-5), old, whole).astype(np.float32)
        return ready

    def _feedable(self, ready: Array) -> Array:
        """What each home's feeder has for it: the origin all that it lacks, a home above as large a part as it has."""
        part = (ready / np.maximum(self._owed, 1)).ravel()[self._feeder]
        above = self._owed * np.where(self._has_feeder, part, 1)
        lacking: Array = (above - self._arrived) * self._alive
        return lacking

    def _share(self, inner: Array, outer: Array, capacity: Array, step_s: float) -> tuple[Array, Array]:
        """Fill all links evenly: each pass gives every flow the least of its fair shares of what is left."""
        sends, receives = capacity.copy(), capacity.copy()
        origin = self._parameters.link_bytes_per_s * self._parameters.origin_links * step_s
        got_inner, got_outer = np.zeros_like(inner), np.zeros_like(outer)
        for _ in range(PASSES):
            open_inner, open_outer = inner - got_inner > 1, outer - got_outer > 1
            send = sends / np.maximum(open_inner.sum(axis=2) + self._fed_by(open_outer), 1)
            receive = receives / np.maximum(open_inner.sum(axis=1) + open_outer, 1)
            fair = np.minimum(send[:, :, None], receive[:, None, :])
            more = np.where(open_inner, np.minimum(fair, inner - got_inner), 0)
            at_origin = int((open_outer & ~self._has_feeder).sum())
            source = np.where(self._has_feeder, send.ravel()[self._feeder], origin / max(1, at_origin))
            feed = np.where(open_outer, np.minimum(np.minimum(source, receive), outer - got_outer), 0)
            got_inner = (got_inner + more).astype(np.float32)
            got_outer = (got_outer + feed).astype(np.float32)
            sends = np.maximum(sends - more.sum(axis=2) - self._fed_by(feed), 0)
            receives = np.maximum(receives - more.sum(axis=1) - feed, 0)
            origin = max(0.0, origin - float(feed[~self._has_feeder].sum()))
        return got_inner, got_outer

    def _fed_by(self, outer: NDArray[Any]) -> Array:
        """The same, summed up at who feeds."""
        weights = outer[self._has_feeder]
        sums = np.bincount(self._feeder[self._has_feeder], weights=weights, minlength=outer.size)
        return sums.reshape(outer.shape).astype(np.float32)

    def _lose(self, now: float) -> None:
        """Those who die now: what they had not sent to everybody goes to the others of their cohort; and homes that
        they fed leave what they lack to others, who are fed by somebody else.
        """
        dying = self._alive & (self._fleet.dies_at * self._parameters.limit_s <= now)
        for cohort, place in np.argwhere(dying):
            self._alive[cohort, place] = False
            self._rehome(cohort, place, 1.0)
            for below, fed in np.argwhere(self._feeder == cohort * dying.shape[1] + place):
                if self._alive[below, fed]:
                    self._rehome(below, fed, 1.0)

    def _relieve(self, now: float) -> None:
        """A home that has delivered less than half of what the others have loses the rest, once it had its time. The
        product takes half of the rest, several times.
        """
        if now < PATIENCE_S:
            return
        sent = self._delivered.sum(axis=2)
        usual = np.array([np.median(row[alive]) for row, alive in zip(sent, self._alive, strict=True)])
        late = self._alive & ~self._is_relieved & (sent < usual[:, None] / 2) & (self._owed > 0)
        for cohort, place in np.argwhere(late):
            self._is_relieved[cohort, place] = True
            self._rehome(cohort, place, RELIEVED)

    def _rehome(self, cohort: int, place: int, part: float) -> None:
        """Part of what a home has not delivered to everybody becomes the others', evenly, as hashing gives it."""
        others = self._alive[cohort] & (self._fleet.speed[cohort] == 1)
        others[place] = False
        if not others.any():
            return
        left = (self._owed[cohort, place] - self._delivered[cohort, place][others].min()) * np.float32(part)
        self._owed[cohort, place] -= left
        self._arrived[cohort, place] = min(self._arrived[cohort, place], self._owed[cohort, place])
        self._owed[cohort][others] += left / others.sum()
