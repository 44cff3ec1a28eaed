"""The fleet that is simulated: its cohorts and their tree, who brings which piece into each zone, who is slow and who
fails. All by the product's own rules, from names, zones and a digest. Pure.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cacheagent.cohorts import COHORT, Cohort, tree_of
from cacheagent.model import Value
from cacheagent.peers.homes import assign_homes, assign_zone_homes

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

HOME, ZONE = 0, 1
"""As what a node has a piece to give: as its home, or as the one that brings it into its zone from the home."""
TREES = 16
"""Kept: the scenes of one size are of the same trees."""


class Scene(Value):
    """`slow`: part of the nodes whose links have a tenth of the rate; `failing`: part that vanishes at some moment of
    the transfer. At least one where it is more than none, and nobody is both. `cohort`: members of one at most. `seed`:
    of what is drawn, and of the digest, so of the tree too.
    """

    nodes: int
    zones: int = 1
    cohort: int = COHORT
    slow: float = 0.0
    failing: float = 0.0
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A group is the members of one zone in one cohort. Nodes are (group, place in it), sources are (group, role,
    place): a node as the home of pieces, and as who brings others into its zone.

    `real`: places that somebody has. `pieces`: of each source. `is_root`, `level` (1: the root), `zone`: of each group.
    `into`, `of`, `shared`: which source is fed by which, flat indexes, and with how many pieces.
    """

    cohorts: Mapping[str, Cohort]
    real: NDArray[np.bool_]
    pieces: Floats
    is_root: NDArray[np.bool_]
    level: Ints
    zone: Ints
    into: Ints
    of: Ints
    shared: Floats


class Fleet:
    """A tree, and what is drawn. `speed`: of a node's link, in links. `dies_at`: in parts of the time that the links
    permit; infinity for who lives.
    """

    def __init__(self, scene: Scene, pieces: int) -> None:
        self.tree = tree(scene.nodes, scene.zones, scene.seed, pieces, scene.cohort)
        drawn = random.Random(scene.seed)
        self.speed = np.ones(self.tree.real.shape, np.float32)
        self.dies_at = np.full(self.tree.real.shape, np.inf, np.float32)
        slow, failing = math.ceil(scene.slow * scene.nodes), math.ceil(scene.failing * scene.nodes)
        for number, some in enumerate(drawn.sample(np.argwhere(self.tree.real).tolist(), slow + failing)):
            if number < slow:
                self.speed[tuple(some)] = 0.1
            else:
                self.dies_at[tuple(some)] = drawn.random()


@lru_cache(maxsize=TREES)
def tree(nodes: int, zones: int, seed: int, pieces: int, cohort: int = COHORT) -> Tree:
    """Of so many nodes, spread evenly over the zones."""
    digest = f"sha256:{seed:064x}"
    zone_of = {f"node-{number}": f"zone-{number % zones}" for number in range(nodes)}
    cohorts = tree_of(zone_of, size=cohort, salt=digest)
    groups = [
        (key, zone, names)
        for key, cohort in cohorts.items()
        for zone in sorted({zone_of[name] for name in cohort.names})
        if (names := [name for name in cohort.names if zone_of[name] == zone])
    ]
    width = max(len(names) for _, _, names in groups)
    roles = 2 if len(groups) > len(cohorts) else 1
    node = {name: (group, place) for group, (_, _, names) in enumerate(groups) for place, name in enumerate(names)}
    flat = {name: group * roles * width + place for name, (group, place) in node.items()}
    homes = {key: assign_homes(cohort.names, digest, pieces) for key, cohort in cohorts.items()}
    at_home = {key: np.array([flat[name] for name in names]) for key, names in homes.items()}
    brought = {}
    for key, zone, names in groups:
        found = assign_zone_homes(homes[key], names, digest)
        sources = np.array([flat[name] for name in found])
        brought[key, zone] = sources + width * ZONE * (sources != at_home[key])
    owed, edges = np.zeros((len(groups), roles, width), np.float32), Counter[tuple[int, int]]()
    for group, (key, zone, _) in enumerate(groups):
        first = group * roles * width
        near = (at_home[key] >= first) & (at_home[key] < first + roles * width)
        np.add.at(owed.reshape(-1), brought[key, zone], 1)
        edges.update(zip(brought[key, zone][~near].tolist(), at_home[key][~near].tolist(), strict=True))
        above = cohorts[key].above
        if above is not None:
            feeders = brought.get((above, zone), at_home[above])
            edges.update(zip(at_home[key][near].tolist(), feeders[near].tolist(), strict=True))
    pairs = sorted(edges)
    return Tree(
        cohorts=cohorts,
        real=np.array([[place < len(names) for place in range(width)] for _, _, names in groups]),
        pieces=owed,
        is_root=np.array([cohorts[key].above is None for key, _, _ in groups]),
        level=np.array([max(1, cohorts[key].level) for key, _, _ in groups]),
        zone=np.array([int(zone.removeprefix("zone-")) for _, zone, _ in groups]),
        into=np.array([into for into, _ in pairs], np.int64),
        of=np.array([of for _, of in pairs], np.int64),
        shared=np.array([edges[pair] for pair in pairs], np.float32),
    )


def crossings(tree: Tree) -> float:
    """Copies of the model that cross from zone to zone while nobody is slow or dead, by a node: what is brought into
    each zone of a cohort from homes in its others, and what comes from another zone of the cohort above.
    """
    size = tree.pieces[0].size
    crossing = tree.zone[tree.into // size] != tree.zone[tree.of // size]
    model = float(tree.pieces[0].sum())  # every group has every piece once
    return float(tree.shared[crossing].sum()) / model / int(tree.real.sum())


def connections(tree: Tree) -> int:
    """The most that one node may have, both directions together: to each other member of its cohort and all of the
    cohort above, of whom it may want something; and from each other member and all of the cohorts below.
    """
    below: Counter[str] = Counter()
    for cohort in tree.cohorts.values():
        if cohort.above is not None:
            below[cohort.above] += len(cohort.names)
    return max(
        2 * (len(cohort.names) - 1)
        + (len(tree.cohorts[cohort.above].names) if cohort.above is not None else 0)
        + below[key]
        for key, cohort in tree.cohorts.items()
    )
