"""The simulation of large fleets, in small cases whose answers are known."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from benchmarks.fanout.cell import Cell, Moment, Run
from benchmarks.fanout.simulate import flows
from benchmarks.fanout.simulate.calibrate import alone, calibrate
from benchmarks.fanout.simulate.fleet import Fleet, Scene, cohorts, connections, crossings
from benchmarks.fanout.simulate.flows import Parameters, simulate

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
    assert 6 <= len(result.times_s) <= 7
    assert result.at(1.0) < 2 * 10.75


def test_cohorts_of_a_tree_are_of_one_zone() -> None:
    """So hardly anything crosses; the origin feeds the first only."""
    tree, apart = (Scene(nodes=256, shape=shape, zones=4) for shape in ("tree", "apart"))
    assert [len({zone for _, zone in group}) for group in cohorts(tree)] == [1, 1, 1, 1]
    fleet = Fleet(tree, 256)
    assert fleet.above == [-1, 0, 0, 1]
    assert fleet.pieces.sum(axis=1).tolist() == [256.0] * 4
    assert crossings(fleet) < 0.02
    assert crossings(Fleet(apart, 256)) > 0.7
    assert connections(fleet) == 2 * 63 + 2 + 1
    assert bool(np.all(Fleet(apart, 256).feeder == -1))


def test_a_tree_costs_the_origin_one_copy_and_cohorts_apart_one_each() -> None:
    """Two cohorts."""
    copies = {
        shape: simulate(Scene(nodes=66, shape=shape), QUICK).origin_bytes / QUICK.size_bytes
        for shape in ("tree", "apart")
    }
    assert copies["tree"] == pytest.approx(1.0, rel=0.01)
    assert copies["apart"] == pytest.approx(2.0, rel=0.01)


def measured(nodes: int, *times_s: float) -> Run:
    cell = Cell(
        variant="peers",
        nodes=nodes,
        size_bytes=100_000_000,
        piece_bytes=1 << 20,
        rate_bytes_per_s=10e6,
        origin_links=2.0,
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


def test_parameters_come_from_one_node_and_the_hop_from_eight() -> None:
    """Times of other sizes are compared."""
    runs = [measured(1, 11.0), measured(8, *[11.6] * 8), measured(2, 11.2, 11.2)]
    single = alone(runs, runs[1].cell)
    assert single.link_bytes_per_s == pytest.approx(10e6)
    assert single.start_s == pytest.approx(0.5)
    assert single.finish_s == pytest.approx(0.5)
    parameters, checks = calibrate(runs)
    assert 0.3 < parameters.hop_s < 0.7
    assert [(check.nodes, check.is_fitted) for check in checks] == [(2, False), (8, True)]
    assert abs(checks[1].error) < 0.01
    with pytest.raises(LookupError, match="8 nodes"):
        calibrate(runs[:1])
