"""Cohorts and their tree: bounded, the same for everybody, few of them changed by one node more, every piece reaches
everybody, and nobody waits in a circle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from cacheagent.cohorts import ALONE, COHORT, ROOT, Circle, Cohort, circle_of, cohorts_of, tree_of
from cacheagent.member import Member
from cacheagent.peers.zones import Zones

names = st.lists(st.integers(0, 5000).map(lambda number: f"gpu-{number:04}"), unique=True, max_size=400)
ZONED = st.dictionaries(
    st.integers(0, 999).map(lambda number: f"gpu-{number}"), st.sampled_from(["", "a", "b"]), min_size=1, max_size=40
)
KEY = "A" * 43 + "="


@given(names, names)
@settings(max_examples=60, deadline=None)
def test_cohorts_are_bounded_and_the_same_for_everybody(some: list[str], others: list[str]) -> None:
    """Every node is in one cohort of at most 64, the order in which they are named does not matter, and what came and
    went before does not either."""
    for nodes in (some, some + [name for name in others if name not in some]):
        cohorts = cohorts_of(nodes)
        assert sorted(name for cohort in cohorts.values() for name in cohort) == sorted(nodes)
        assert all(0 < len(cohort) <= COHORT for cohort in cohorts.values())
        turned = cohorts_of(nodes[::-1])
        assert {prefix: sorted(cohort) for prefix, cohort in turned.items()} == {
            prefix: sorted(cohort) for prefix, cohort in cohorts.items()
        }
        assert len(nodes) > COHORT or len(cohorts) <= 1, "few nodes are one cohort"


@given(st.lists(st.integers(0, 10**6).map(lambda number: f"gpu-{number}"), unique=True, min_size=1, max_size=300))
@settings(max_examples=30, deadline=None)
def test_one_node_more_changes_its_own_cohort_alone(nodes: list[str]) -> None:
    """Others keep theirs, but for one that is parted because it would be too large; the same backwards for one that
    leaves."""
    for count, more in pairwise(range(len(nodes) + 1)):
        before = {frozenset(cohort) for cohort in cohorts_of(nodes[:count]).values()}
        after = {frozenset(cohort) for cohort in cohorts_of(nodes[:more]).values()}
        assert len(before - after) <= 1
        mine = next(cohort for cohort in after if nodes[count] in cohort)
        if before - after:
            (left,) = before - after
            assert frozenset().union(*(after - before)) == left | {nodes[count]}
            assert mine in after - before


def test_cohorts_of_thousands_are_not_too_small() -> None:
    """On average they are at least half full."""
    for count in (65, 100, 500, 2000, 5000):
        cohorts = cohorts_of([f"gpu-node-{number:05}.cluster.example" for number in range(count)])
        assert count / len(cohorts) >= COHORT / 2


@given(ZONED, st.integers(1, 5))
@settings(deadline=None)
def test_cohorts_make_one_tree(zones: dict[str, str], size: int) -> None:
    """All of them but the root hang below another one, a level deeper, and at most two below each. A zone that is too
    large for a cohort shares none."""
    tree = tree_of(zones, size=size)
    assert sorted(name for cohort in tree.values() for name in cohort.names) == sorted(zones)
    assert all(0 < len(cohort.names) <= size for cohort in tree.values())
    if len(zones) <= size:
        assert tree == {"": Cohort(tuple(sorted(zones)))}
        assert tree[""].level == ALONE
        return
    assert [cohort.level for cohort in tree.values() if cohort.above is None] == [ROOT]
    for cohort in tree.values():
        assert cohort.above is None or cohort.level == tree[cohort.above].level + 1
        inside = {zones[name] for name in cohort.names}
        large = {zone for zone in inside if zone and list(zones.values()).count(zone) > size}
        assert not large or inside == large
    assert max(Counter(cohort.above for cohort in tree.values()).values()) <= 2


@pytest.mark.parametrize(("nodes", "most_levels"), [(256, 5), (4096, 10)])
def test_nobody_talks_to_more_than_a_few_cohorts(nodes: int, most_levels: int) -> None:
    """A node calls its own cohort and the one above, and lets in its own and two below, however many there are."""
    tree = tree_of({f"gpu-{number}": "" for number in range(nodes)})
    assert max(cohort.level for cohort in tree.values()) <= most_levels
    for key, cohort in tree.items():
        above = len(tree[cohort.above].names) if cohort.above is not None else 0
        below = sum(len(other.names) for other in tree.values() if other.above == key)
        assert len(cohort.names) - 1 + above <= 2 * COHORT - 1
        assert len(cohort.names) - 1 + below <= 3 * COHORT - 1


@pytest.mark.parametrize("nodes", [64, 65, 256, 4096])
def test_all_parts_of_a_budget_are_no_more_than_it(nodes: int) -> None:
    """And where there is a tree the root has half of it."""
    names = [f"gpu-{number}" for number in range(nodes)]
    tree = tree_of(dict.fromkeys(names, ""))
    members = {name: Member(name=name, address="10.0.0.1:7411", key=KEY) for name in names}
    shares = [
        len(cohort.names) / Circle(tuple(members[name] for name in cohort.names), (), {}, cohort.level, nodes).sharers
        for cohort in tree.values()
    ]
    assert sum(shares) <= 1
    assert max(shares) >= (1 if len(tree) == 1 else 0.5)


def relations(tree: dict[str, Cohort]) -> set[tuple[object, ...]]:
    """What each cohort's list says: who is on it, who is above, who is below, and its level."""
    return {
        (
            cohort.names,
            tree[cohort.above].names if cohort.above is not None else (),
            tuple(sorted(name for other in tree.values() if other.above == key for name in other.names)),
            cohort.level,
        )
        for key, cohort in tree.items()
    }


@pytest.mark.parametrize("nodes", [256, 1000])
def test_one_node_more_changes_few_lists(nodes: int) -> None:
    """Its own, the one above and two below; where its cohort is parted, a second one and who is above that."""
    zones = {f"gpu-{number}": "" for number in range(nodes)}
    before = tree_of(zones)
    for number in range(nodes, nodes + 40):
        zones[f"gpu-{number}"] = ""
        after = tree_of(zones)
        changed = len(relations(after) - relations(before))
        assert changed <= (4 if len(after) == len(before) else 6)
        before = after


@given(ZONED, st.integers(1, 5), st.data())
@settings(deadline=None)
def test_every_piece_comes_from_the_origin_once_and_reaches_everybody(
    zones: dict[str, str], size: int, data: st.DataObject
) -> None:
    """From any node, whom it asks for a piece, whom that one asks, and so on, the origin is reached, by way of the same
    member of the root. With any members of any cohort out, it is reached too, whatever each thinks of the others."""
    members = [Member(name=name, address="10.0.0.1:7411", key=KEY, zone=zone) for name, zone in zones.items()]
    seen = {}
    for name in zones:
        circle = circle_of(members, name, size=size)
        seen[name] = Zones(circle.near, name, "sha256:aa", circle.above)
        seen[name].assign(3)
        allowed = {member.name for member in (*circle.near, *circle.above)}
        assert whom_it_asks(seen[name], set()) in allowed | {""}
    assert len({way_of(name, lambda each: whom_it_asks(seen[each], set()))[-1] for name in zones}) == 1
    out = {name: data.draw(st.sets(st.sampled_from(sorted(zones))), label=name) - {name} for name in zones}
    adopted = data.draw(st.sets(st.sampled_from(sorted(zones))), label="asked to take it over")
    for name in zones:
        way_of(name, lambda each: whom_it_asks(seen[each], out[each], has_adopted=each in adopted))


def way_of(name: str, asks: Callable[[str], str]) -> list[str]:
    """Who is asked one after the other until one asks the origin."""
    way = [name]
    while whom := asks(way[-1]):
        assert whom not in way, f"{way} and {whom} again"
        way.append(whom)
    return way


def whom_it_asks(seen: Zones, out: set[str], *, has_adopted: bool = False) -> str:
    """For the last piece; empty: the origin."""
    piece, source = 2, seen.sources[2]
    if source not in out and source != seen.me and not has_adopted:
        return source
    if source != seen.me and not has_adopted:
        near = seen.next_near(piece, lambda name: name not in out)
        if near != seen.me:
            return near
    return seen.next_far(piece, lambda name: name not in out)
