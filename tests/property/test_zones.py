"""Who brings a piece into a zone: one member of each, the same for all of them, and nobody waits in a circle."""

from __future__ import annotations

import time
from collections import Counter
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from cacheagent.cohorts import COHORT
from cacheagent.member import Member
from cacheagent.peers.homes import AHEAD, assign_homes, assign_zone_homes
from cacheagent.peers.zones import Zones

DIGEST = "sha256:aa"
ZONES = st.dictionaries(st.text(min_size=1, max_size=8), st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=12)
ORIGIN = ""


def seen_by(name: str, zones: dict[str, str], pieces: int) -> Zones:
    """As one of the members sees the exchange."""
    key = "A" * 43 + "="
    members = [Member(name=each, address="10.0.0.1:7411", key=key, zone=zone) for each, zone in zones.items()]
    seen = Zones(members, name, DIGEST)
    seen.assign(pieces)
    return seen


@given(ZONES, st.integers(0, 100))
def test_every_piece_comes_into_each_zone_once(zones: dict[str, str], pieces: int) -> None:
    """All agree who the home is, and those of a zone from whom they take it; there, one alone asks beyond the zone.
    What comes from elsewhere is as much for each of its members, at any point of the order."""
    seen = {name: seen_by(name, zones, pieces) for name in zones}
    (homes,) = {each.homes for each in seen.values()}
    assert homes == assign_homes(zones, DIGEST, pieces)
    for zone in set(zones.values()):
        near = {name for name in zones if zones[name] == zone}
        assert all(seen[name].near == near for name in near)
        (sources,) = {seen[name].sources for name in near}
        assert near.issuperset(sources)
        loads: Counter[str] = Counter()
        elsewhere = [piece for piece in range(pieces) if homes[piece] not in near]
        for given_out, piece in enumerate(elsewhere):
            assert [name for name in near if seen[name].is_brought(piece)] == [sources[piece]]
            loads[sources[piece]] += 1
            assert loads[sources[piece]] <= given_out // len(near) + AHEAD
        assert max(loads.values(), default=0) <= -(-len(elsewhere) // len(near))
        for piece in set(range(pieces)).difference(elsewhere):
            assert sources[piece] == homes[piece]
            assert not any(seen[name].is_brought(piece) for name in near)


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True), st.integers(0, 100))
def test_one_zone_is_as_none(names: list[str], pieces: int) -> None:
    """Everybody takes every piece from its home."""
    homes = assign_homes(names, DIGEST, pieces)
    assert seen_by(names[0], dict.fromkeys(names, "a"), pieces).sources == homes
    assert assign_zone_homes(homes, names, DIGEST) == homes


@given(ZONES, st.data())
def test_whoever_is_asked_in_place_of_others_nobody_waits_in_a_circle(
    zones: dict[str, str], data: st.DataObject
) -> None:
    """Whatever each member thinks of the others: from any of them, whom it asks, whom that one asks, and so on, the
    origin is reached."""
    asked = {name: whom_it_asks(seen_by(name, zones, 3), data) for name in zones}
    for start in zones:
        name, steps = start, count()
        while name != ORIGIN:
            assert next(steps) <= len(zones), asked
            name = asked[name]


def whom_it_asks(seen: Zones, data: st.DataObject) -> str:
    """For the last piece: at first, in place of who is no help, or as one who was asked to take it over."""
    piece = 2
    out = data.draw(st.sets(st.sampled_from(seen.names)), label=f"out for {seen.me!r}") - {seen.me}
    state = data.draw(st.sampled_from(["first", "moved", "adopted"]), label=f"{seen.me!r} is")
    if seen.homes[piece] == seen.me:
        return ORIGIN
    if state == "first" and seen.sources[piece] != seen.me:
        return seen.sources[piece]
    if state == "moved" and not seen.is_brought(piece):
        near = seen.next_near(piece, lambda name: name not in out)
        if near != seen.me:
            return near
    return seen.next_far(piece, lambda name: name not in out)


def test_who_is_asked_beyond_the_zone() -> None:
    """The home, then the others of its zone, then members of a third zone that comes before this one; then nobody."""
    zones = {f"n{number}": zone for number, zone in enumerate("aaabbbccc")}
    seen = {name: seen_by(name, zones, 90) for name in zones}
    homes = seen["n0"].homes
    lengths = Counter[int]()
    for piece in (piece for piece in range(90) if zones[homes[piece]] == "a"):
        for name in ("n3", "n6"):
            asked: list[str] = []
            while whom := seen[name].next_far(piece, set(seen[name].names).difference(asked).__contains__):
                asked.append(whom)
            assert asked[0] == homes[piece]
            assert {zones[each] for each in asked[:3]} == {"a"}
            assert zones[name] not in {zones[each] for each in asked[3:]}
            lengths[min(4, len(asked))] += 1
    assert lengths[3] == lengths[4], "one of the two other zones asks the other, which asks the origin"


def test_a_large_cohort_is_assigned_within_seconds() -> None:
    """1 TB among 64 members in four zones."""
    zones = {f"node-{number}": f"zone-{number % 4}" for number in range(COHORT)}
    began = time.process_time()
    seen = seen_by("node-0", zones, 62_500)
    assert time.process_time() - began < 4
    mine = sum(seen.is_brought(piece) for piece in range(62_500))
    assert mine == 62_500 * 3 // 4 // 16 or mine == 62_500 * 3 // 4 // 16 + 1
