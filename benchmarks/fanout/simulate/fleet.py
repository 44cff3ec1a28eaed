"""The fleet that is simulated: who is in which cohort, how cohorts hang together, who is slow and who fails. Pure."""

from __future__ import annotations

import random
from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cacheagent.cohorts import COHORT
from cacheagent.model import Value
from cacheagent.peers.homes import assign_homes, rank

DIGEST = "sha256:" + "0" * 64

Shape = Literal["tree", "apart"]
"""How several cohorts get their copies: the homes of one from the homes of another, in a tree of that breadth, so that
the origin gives one copy; or each cohort one from the origin."""


class Scene(Value):
    """`slow`: part of the nodes whose links have a tenth of the rate; `failing`: part that dies at some moment of the
    transfer. `breadth`: cohorts that one feeds in a tree. `seed`: of what is drawn.
    """

    nodes: int
    shape: Shape = "tree"
    breadth: int = 2
    zones: int = 1
    slow: float = 0.0
    failing: float = 0.0
    seed: int = 1


class Fleet:
    """Arrays of (cohort, place in it). A place that nobody has is not `real`.

    `pieces`: how many pieces each node is the home of, by the product's own rule. `feeder`: who feeds a home with its
    share, as an index into all places (-1: the origin). `dies_at`: in parts of the time that the links permit; infinity
    for who lives.
    """

    def __init__(self, scene: Scene, pieces: int) -> None:
        drawn = random.Random(scene.seed)
        groups = cohorts(scene)
        width = max(map(len, groups))
        shape = (len(groups), width)
        self.zones = groups_zones(groups)
        self.real: NDArray[np.bool_] = np.zeros(shape, bool)
        self.pieces: NDArray[np.float32] = np.zeros(shape, np.float32)
        self.speed: NDArray[np.float32] = np.ones(shape, np.float32)
        self.dies_at: NDArray[np.float32] = np.full(shape, np.inf, np.float32)
        self.above = [above(scene, number) for number in range(len(groups))]
        self.feeder: NDArray[np.int64] = np.full(shape, -1)
        places = []
        for number, names in enumerate(groups):
            homes = Counter(assign_homes([name for name, _ in names], DIGEST, pieces))
            for place, (name, _) in enumerate(names):
                self.real[number, place] = True
                self.pieces[number, place] = homes[name]
                places.append((number, place))
                if (feeder := self.above[number]) >= 0:
                    self.feeder[number, place] = feeder * width + place % len(groups[feeder])
        for some in drawn.sample(places, round(scene.slow * len(places))):
            self.speed[some] = 0.1
        for some in drawn.sample(places, round(scene.failing * len(places))):
            self.dies_at[some] = drawn.random()


def above(scene: Scene, number: int) -> int:
    """The cohort that feeds this one: in a tree numbered level by level; -1 for the origin."""
    return (number - 1) // scene.breadth if scene.shape == "tree" and number else -1


def cohorts(scene: Scene) -> list[list[tuple[str, int]]]:
    """(name, zone) of the members of each cohort, all of the same size, while the product's have between half of that
    and all of it. In a tree they are of one zone where zones are large enough, and zones hang together; apart they are
    drawn from all.
    """
    nodes = [(f"node-{number}", number % scene.zones) for number in range(scene.nodes)]
    count = -(-scene.nodes // COHORT)
    if scene.shape == "tree":
        nodes.sort(key=lambda node: node[1])
        return [nodes[scene.nodes * n // count : scene.nodes * (n + 1) // count] for n in range(count)]
    zones = dict(nodes)
    ordered = rank(zones, DIGEST, 0)[::-1]
    groups = [sorted(ordered[number::count]) for number in range(count)]
    place = {name: at for at, name in enumerate(zones)}
    groups.sort(key=lambda names: min(place[name] for name in names))
    return [[(name, zones[name]) for name in names] for names in groups]


def groups_zones(groups: list[list[tuple[str, int]]]) -> list[Counter[int]]:
    """How many members of each zone a cohort has."""
    return [Counter(zone for _, zone in names) for names in groups]


def crossings(fleet: Fleet) -> float:
    """Copies of the model that cross from zone to zone, by a node: of what homes send to their cohorts, and of what
    cohorts feed each other.
    """
    copies = 0.0
    for number, zones in enumerate(fleet.zones):
        size = zones.total()
        copies += sum(count * (size - count) / size for count in zones.values())
        if fleet.above[number] >= 0:
            feeders = fleet.zones[fleet.above[number]]
            copies += sum(zones[zone] / size * (1 - feeders[zone] / feeders.total()) for zone in zones)
    return copies / int(fleet.real.sum())


def connections(fleet: Fleet) -> int:
    """The most that one node has: one to and one from each of its cohort, and those of the tree."""
    below: Counter[int] = Counter(int(feeder) for feeder in fleet.feeder[fleet.feeder >= 0])
    width = max(zones.total() for zones in fleet.zones)
    return 2 * (width - 1) + max(below.values(), default=0) + (1 if below else 0)
