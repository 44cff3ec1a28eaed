"""The exchange as flows: in each step of time every link is shared fairly among those who have something to send.

A flow is what a source owes a member of its zone, what the origin owes a home of the root, or what goes along an edge:
from a home to who brings its pieces into another zone of its cohort, and from a member of the cohort above to a home.
It may carry what has arrived at its beginning in whole steps, some time after it arrived. There are no pieces with
names: what a source has of one home's pieces is as large a part as what it has of all of its own.
"""

from __future__ import annotations

import numpy as np

from benchmarks.fanout.simulate.fleet import Fleet, Scene
from benchmarks.fanout.simulate.patience import LOOK_S, Patience
from benchmarks.fanout.simulate.sharing import Links
from benchmarks.fanout.simulate.state import Parameters, State
from cacheagent.model import Value

STEPS = 800
"""Of time, in what the links permit."""
LONGEST = 6
"""In times of what the links permit: whoever is not done by then never is."""
DONE = 0.9999
"""Of the model."""


class Result(Value):
    """`times_s`: of all nodes that are neither slow nor dead, in order. `origin_bytes`: all that the origin sent, but
    for spot checks, which are not simulated.
    """

    times_s: tuple[float, ...]
    origin_bytes: float

    def at(self, part: float) -> float:
        """The time by which that part of the nodes is done."""
        return self.times_s[min(len(self.times_s) - 1, int(part * len(self.times_s)))]


def simulate(scene: Scene, parameters: Parameters) -> Result:
    """Run it until every node that counts has everything."""
    fleet = Fleet(scene, parameters.pieces)
    state, links = State(fleet, parameters), Links(fleet.tree)
    patience = Patience(fleet, state)
    step_s = parameters.limit_s / STEPS
    late = round(parameters.hop_s / step_s)
    link = parameters.link_bytes_per_s * step_s
    counts = fleet.tree.real & (fleet.speed == 1) & np.isinf(fleet.dies_at)
    done_at = np.full(fleet.tree.real.shape, np.inf)
    next_look = LOOK_S
    for step in range(1, STEPS * LONGEST):
        now = step * step_s
        dying = state.alive & (fleet.dies_at * parameters.limit_s <= now)
        if dying.any():
            state.alive &= ~dying
            state.see()
            patience.died(dying, now)
        if now >= next_look:
            patience.look(now)
            next_look = now + LOOK_S
        capacity = fleet.speed * np.float32(link) * state.alive
        wanted = state.wanted(state.ready(late))
        state.add(*links.share(state, wanted, capacity, link * parameters.origin_links))
        done_at[(state.has() >= parameters.size_bytes * DONE) & np.isinf(done_at)] = now
        if np.isfinite(done_at[counts]).all():
            break
    beside_s = parameters.start_s + parameters.finish_s + (parameters.uneven_s if scene.nodes > 1 else 0.0)
    times = np.sort(done_at[counts]) + beside_s
    return Result(times_s=tuple(float(time) for time in times), origin_bytes=state.origin_sent)
