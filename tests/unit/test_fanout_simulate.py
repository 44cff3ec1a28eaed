"""The simulation of large fleets, in small cases whose answers are known."""

from __future__ import annotations

import base64
from collections import Counter

import msgspec
import numpy as np
import pytest

from benchmarks.fanout.cell import Cell, Moment, Run
from benchmarks.fanout.simulate import flows
from benchmarks.fanout.simulate.calibrate import alone, calibrate
from benchmarks.fanout.simulate.fleet import Fleet, Scene, Tree, connections, crossings, tree
from benchmarks.fanout.simulate.flows import simulate
from benchmarks.fanout.simulate.state import Parameters
from cacheagent.cohorts import COHORT, tree_of
from cacheagent.member import Member
from cacheagent.peers.zones import Zones

KEY = base64.b64encode(bytes(32)).decode()
QUICK = Parameters(
    size_bytes=100e6,
    pieces=128,
    link_bytes_per_s=10e6,
    origin_links=2.0,
    step_bytes=256e3,
    hop_s=0.0,
    start_s=0.5,
    finish_s=0.25,
)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the steps of time: an answer within some percent in a tenth of a second."""
    monkeypatch.setattr(flows, "STEPS", 250)


def test_one_node_takes_what_its_link_permits() -> None:
    """And the start and the end."""
    result = simulate(Scene(nodes=1), QUICK)
    assert result.times_s == pytest.approx((10.75,), rel=0.01)
    assert result.origin_bytes == pytest.approx(100e6, rel=0.001)


def test_a_fleet_takes_hardly_longer_than_one_node_and_one_copy() -> None:
    """Two nodes and eight."""
    for nodes in (2, 8):
        result = simulate(Scene(nodes=nodes), QUICK)
        assert result.at(1.0) == pytest.approx(10.75, rel=0.04)
        assert result.origin_bytes == pytest.approx(100e6, rel=0.001)


def test_a_slow_origin_bounds_everybody() -> None:
    """A quarter of a link."""
    slow = msgspec.structs.replace(QUICK, origin_links=0.25)
    assert simulate(Scene(nodes=4), slow).at(0.5) == pytest.approx(40.75, rel=0.05)


def test_who_dies_is_replaced_and_who_is_slow_is_relieved() -> None:
    """The others get everything; the dead and the slow are not counted."""
    result = simulate(Scene(nodes=8, slow=0.125, failing=0.125, seed=3), QUICK)
    assert len(result.times_s) == 6
    assert result.at(1.0) < 2 * 10.75


def test_somebody_is_slow_and_somebody_fails_where_parts_are_less_than_one() -> None:
    """At 256 nodes one in a thousand is one, and nobody is both."""
    fleet = Fleet(Scene(nodes=256, zones=4, slow=0.01, failing=0.001), 64)
    assert int((fleet.speed < 1).sum()) == 3
    assert int(np.isfinite(fleet.dies_at).sum()) == 1
    assert not (np.isfinite(fleet.dies_at) & (fleet.speed < 1)).any()


def test_the_others_wait_for_one_that_has_vanished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share comes only after they have noticed: three seconds after its death at the soonest."""

    def vanish(fleet: Fleet, scene: Scene, pieces: int) -> None:
        begin(fleet, scene, pieces)
        fleet.dies_at[0, 0] = 0.9

    quiet = simulate(Scene(nodes=8), QUICK)
    begin = Fleet.__init__
    monkeypatch.setattr(Fleet, "__init__", vanish)
    result = simulate(Scene(nodes=8), QUICK)
    assert len(result.times_s) == 7
    assert result.at(0.5) >= 0.5 + 9.0 + 3.0 + 0.25
    assert result.at(0.5) > quiet.at(0.5) + 1
    assert QUICK.size_bytes * 1.001 < result.origin_bytes < QUICK.size_bytes * 1.1


@pytest.mark.parametrize(("nodes", "zones"), [(64, 4), (150, 1), (256, 4), (300, 2)])
def test_every_piece_comes_from_whom_the_product_asks_for_it(nodes: int, zones: int) -> None:
    """Cohorts, homes and who is asked, of every node; and each has as much as it is owed."""
    pieces, digest = 128, f"sha256:{1:064x}"
    found = tree(nodes, zones, 1, pieces)
    members = {
        f"node-{n}": Member(name=f"node-{n}", address="10.0.0.1:7411", key=KEY, zone=f"zone-{n % zones}")
        for n in range(nodes)
    }
    cohorts = tree_of({name: member.zone for name, member in members.items()}, salt=digest)
    asked = Counter[tuple[str, str]]()
    for cohort in cohorts.values():
        above = cohorts[cohort.above].names if cohort.above is not None else ()
        for name in cohort.names:
            view = Zones([members[n] for n in cohort.names], name, digest, [members[n] for n in above])
            view.assign(pieces)
            for piece in range(pieces):
                if view.is_brought(piece) and (other := view.next_far(piece, lambda _: True)):
                    asked[name, other] += 1
    assert sum(asked.values()) == found.shared.sum()
    assert sorted(asked.values()) == sorted(_by_node(found))
    fed = np.bincount(found.into, found.shared, found.pieces.size).reshape(found.pieces.shape)
    fed[found.is_root, 0] = found.pieces[found.is_root, 0]
    assert (fed == found.pieces).all()
    assert (found.pieces.sum(axis=(1, 2)) == pieces).all()


def _by_node(found: Tree) -> list[int]:
    """Pieces of each pair of nodes, whatever their roles."""
    _, roles, width = found.pieces.shape
    nodes = [edge // (roles * width) * width + edge % width for edge in (found.into, found.of)]
    pairs = Counter[tuple[int, int]]()
    for into, of, shared in zip(*nodes, found.shared.tolist(), strict=True):
        pairs[into, of] += int(shared)
    return list(pairs.values())


def test_zones_and_connections_are_those_of_the_tree() -> None:
    """One cohort of four zones: a piece comes into the three that are not its home's. Large zones hang together, so
    that it comes into each once. A node has to do with its cohort, the one above and two below.
    """
    assert crossings(tree(64, 4, 1, 128)) == pytest.approx(3 / 64)
    assert crossings(tree(512, 4, 1, 128)) == pytest.approx(3 / 512)
    assert connections(tree(64, 4, 1, 128)) == 126
    assert 126 < connections(tree(512, 4, 1, 128)) <= 2 * 63 + 3 * 64


def test_a_tree_costs_the_origin_one_copy_and_each_level_time() -> None:
    """Two cohorts: a second level gets its copy from the first, whole pieces at a time."""
    root = simulate(Scene(nodes=64), QUICK)
    both = simulate(Scene(nodes=66), QUICK)
    assert both.origin_bytes == pytest.approx(QUICK.size_bytes, rel=0.001)
    assert root.at(1.0) + 0.25 < both.at(1.0) < 2 * root.at(1.0)


def measured(nodes: int, *times_s: float, cohort: int = COHORT) -> Run:
    cell = Cell(
        variant="peers",
        nodes=nodes,
        size_bytes=100_000_000,
        piece_bytes=1 << 20,
        rate_bytes_per_s=10e6,
        origin_links=2.0,
        cohort=cohort,
    )
    moments = [
        Moment(
            at_s=at / 2,
            origin_sent=0,
            received=(received := max(0, at - 1) * 5_000_000),
            least_received=received,
            most_received=received,
        )
        for at in range(22)
    ]
    return Run(
        cell=cell,
        version="1",
        at="",
        times_s=times_s,
        origin_bytes=0,
        received_bytes=100_000_000,
        sent_bytes=1,
        cpu_s=0.0,
        cpu_by_program_s={},
        machine_cpu=0.0,
        pss_bytes=(),
        moments=tuple(moments),
    )


def test_parameters_come_from_one_node_a_cohort_and_a_tree() -> None:
    """Times of other sizes are compared. A tree that takes hardly longer than a cohort has short hops, whatever the
    cohort itself takes; one that takes longer has long ones."""
    runs = [measured(1, 11.0), measured(4, *[11.9] * 4), measured(2, 11.2, 11.2)]
    single = alone(runs, runs[1].cell)
    assert single.link_bytes_per_s == pytest.approx(10e6)
    assert single.start_s == pytest.approx(0.5)
    assert single.finish_s == pytest.approx(0.5)
    quick, checks = calibrate([*runs, measured(16, *[12.2] * 16, cohort=8)])
    assert {(check.nodes, check.is_fitted) for check in checks} == {(2, False), (4, True), (16, True)}
    assert all(abs(check.error) < 0.01 for check in checks if check.nodes == 4)
    slow, checks = calibrate([*runs, measured(16, *[16.5] * 16, cohort=8)])
    assert all(abs(check.error) < 0.03 for check in checks if check.is_fitted)
    assert quick.hop_s < 0.3 < slow.hop_s
    assert quick.uneven_s > slow.uneven_s
    for some in (runs[:1], runs):
        with pytest.raises(LookupError, match="4 nodes, and of 16 in cohorts of 8"):
            calibrate(some)
