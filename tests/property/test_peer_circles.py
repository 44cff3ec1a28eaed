"""Exchanges that ask each other, hand pieces over and take them back: whatever they do at the same time, and whatever
each of them thinks of the others, nobody waits in a circle, and all of them come to an end."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheagent.store import Store
from tests.fakes.cache import NO_FLOOR
from tests.fakes.peer_fleet import Plan, draw_plan, run_fleet

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One that all nodes have, since none of them uses it."""
    opened = Store.open(tmp_path_factory.mktemp("fleet") / "cache", NO_FLOOR)
    yield opened
    opened.close()


def comes_to_an_end(plan: Plan, rng: Random, store: Store) -> None:
    """The standstill, which would ask the origin after all, helps nobody."""
    fleet = run_fleet(plan, rng, store)
    assert not fleet.lacks, fleet.story()


@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_nobody_waits_in_a_circle(store: Store, seed: int) -> None:
    """What a home hands over, what is shared out of a late one, and what is adopted cross each other."""
    rng = Random(seed)
    comes_to_an_end(draw_plan(rng), rng, store)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_nobody_waits_in_a_circle_in_two_zones(store: Store, seed: int) -> None:
    """One node of each zone asks the other zone."""
    rng = Random(seed)
    comes_to_an_end(draw_plan(rng, zones=2), rng, store)


@given(SEEDS)
@settings(max_examples=120, deadline=None)
def test_nobody_waits_in_a_circle_in_a_tree(store: Store, seed: int) -> None:
    """One cohort feeds the next ones, in its zone and in others."""
    rng = Random(seed)
    comes_to_an_end(draw_plan(rng, zones=rng.randint(1, 3), is_tree=True), rng, store)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_nobody_waits_in_a_circle_where_connections_break_and_nodes_die(store: Store, seed: int) -> None:
    """Those that live come to an end."""
    rng = Random(seed)
    comes_to_an_end(draw_plan(rng, breaks=True), rng, store)
