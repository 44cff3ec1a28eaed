"""Homes of pieces: every member as many, the same on every node, few moves when somebody leaves."""

from __future__ import annotations

import random
import time
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cacheagent.cohorts import COHORT
from cacheagent.peers.homes import AHEAD, assign_homes, rank

NAMES = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=20, unique=True)
PIECES = st.integers(0, 300)


@given(NAMES, PIECES, st.randoms())
def test_the_same_on_every_node_and_balanced_at_every_point(
    names: list[str], pieces: int, shuffle: random.Random
) -> None:
    """Order of the list does not matter; no member is ever more than two pieces ahead, and none above its share."""
    homes = assign_homes(names, "sha256:aa", pieces)
    shuffle.shuffle(names)
    assert assign_homes(names, "sha256:aa", pieces) == homes
    assert len(homes) == pieces
    loads: Counter[str] = Counter()
    for piece, home in enumerate(homes):
        loads[home] += 1
        assert loads[home] <= piece // len(names) + AHEAD
    assert max(loads.values(), default=0) <= -(-pieces // len(names))


@given(NAMES, st.integers(0, 1000))
def test_ranks_hold_everybody_and_don_t_depend_on_others(names: list[str], piece: int) -> None:
    """A permutation of the members; without one of them the others keep their order."""
    order = rank(names, "sha256:aa", piece)
    assert sorted(order) == sorted(names)
    assert rank(names[1:], "sha256:aa", piece) == [name for name in order if name != names[0]]


def test_who_leaves_moves_its_own_and_few_others() -> None:
    """Of 640 pieces among 16, its 40 and less than a third of the rest get another home."""
    names = [f"node-{number}" for number in range(16)]
    before, after = (assign_homes(some, "sha256:aa", 640) for some in (names, names[:-1]))
    moved = sum(home != other for home, other in zip(before, after, strict=True))
    assert 40 <= moved <= 40 + 640 // 3


def test_a_large_cohort_is_assigned_within_two_seconds() -> None:
    """1 TB among 64 members; nearly all of a piece's homes are its first choice."""
    names = [f"node-{number}" for number in range(COHORT)]
    began = time.process_time()
    homes = assign_homes(names, "sha256:aa", 62_500)
    assert time.process_time() - began < 2
    firsts = sum(rank(names, "sha256:aa", piece)[0] == homes[piece] for piece in range(0, 62_500, 125))
    assert firsts > 250
