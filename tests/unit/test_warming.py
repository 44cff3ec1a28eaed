"""Configured models are brought, by priority, again after a failure, and never in a storm."""

import asyncio
from typing import cast

import pytest

from cacheagent.flights import INTEREST_S, Flights
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.warming import FIRST_RETRY_S, LONGEST_RETRY_S, WARM_AT_ONCE, Warming
from tests.fakes.fake_flights import FakeFlights


def spec(name: str, *, priority: int = 0, keep_warm: bool = True, uri: str = "") -> ModelSpec:
    """A configured model."""
    source = SourceSpec(uri=uri or f"s3://bucket/{name}")
    return ModelSpec(name=name, source=source, priority=priority, keep_warm=keep_warm)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def warming(flights: FakeFlights, *specs: ModelSpec, clock: Clock | None = None) -> Warming:
    """On fake flights, without chance."""
    made = Warming(cast(Flights, flights), specs, now=clock or Clock(), jitter=lambda: 0.0)
    flights.listener = made.heard
    return made


def states(under_test: Warming) -> dict[str, str]:
    """State by name."""
    return {wanted.name: wanted.state for wanted in under_test.wanted()}


def test_the_most_important_start_first_and_not_all_at_once() -> None:
    """What has to wait says so, and its turn comes when another is ready."""
    flights = FakeFlights()
    under_test = warming(flights, *(spec(f"m{n}", priority=n) for n in range(WARM_AT_ONCE + 2)))
    under_test.step()
    under_test.step()
    assert flights.started == [f"m{n}" for n in range(WARM_AT_ONCE + 1, 1, -1)]
    assert states(under_test)["m1"] == states(under_test)["m0"] == "waiting"
    flights.finish("m3")
    under_test.step()
    assert flights.started[-1] == "m1"
    assert states(under_test) == {
        "m5": "working",
        "m4": "working",
        "m3": "ready",
        "m2": "working",
        "m1": "working",
        "m0": "waiting",
    }


def test_interest_is_renewed_while_a_job_runs() -> None:
    """So that a job of hours is not ended for want of interest; what was started lapses by itself after a removal."""
    flights = FakeFlights()
    under_test = warming(flights, spec("llama"))
    under_test.step()
    flights.wanted_s.clear()
    under_test.step()
    assert flights.wanted_s == {"llama": INTEREST_S}
    assert flights.started == ["llama"]
    assert flights.dropped == 2
    flights.wanted_s.clear()
    under_test.want([])
    under_test.step()
    assert flights.wanted_s == {}


def test_a_failed_model_is_tried_again_later_and_later() -> None:
    """Its state says why it failed and when it is tried again; what stays here for a while begins anew."""
    flights, clock = FakeFlights(), Clock()
    under_test = warming(flights, spec("llama"), clock=clock)
    pauses = []
    for _ in range(10):
        under_test.step()
        flights.fail("llama")
        under_test.step()
        (wanted,) = under_test.wanted()
        assert (wanted.state, wanted.error, wanted.message) == ("failed", "origin-unavailable", "llama: no answer")
        assert wanted.hint == "look there"
        pauses.append(wanted.retry_in_s)
        count = len(flights.started)
        clock.now += wanted.retry_in_s - 0.1
        under_test.step()
        assert len(flights.started) == count, "too early"
        clock.now += 0.2
    assert pauses[:3] == [FIRST_RETRY_S, 2 * FIRST_RETRY_S, 4 * FIRST_RETRY_S]
    assert pauses[-1] == LONGEST_RETRY_S
    under_test.step()
    flights.finish("llama")
    under_test.step()
    assert states(under_test) == {"llama": "ready"}
    clock.now += LONGEST_RETRY_S + 1
    under_test.step()
    flights.here.clear()
    under_test.step()
    assert under_test.wanted()[0].retry_in_s == FIRST_RETRY_S


def test_a_failure_holds_up_nobody_else() -> None:
    """The next one's turn comes at once."""
    flights = FakeFlights()
    specs = [spec("broken", priority=9), *(spec(f"m{n}") for n in range(WARM_AT_ONCE))]
    under_test = warming(flights, *specs)
    under_test.step()
    assert "m3" not in flights.started
    flights.fail("broken")
    under_test.step()
    assert "m3" in flights.started
    assert states(under_test)["broken"] == "failed"


def test_a_model_that_was_evicted_is_fetched_again_after_a_moment() -> None:
    """It is configured, so it comes back, and its state says why it is not here."""
    flights, clock = FakeFlights(), Clock()
    under_test = warming(flights, spec("llama"), clock=clock)
    under_test.step()
    flights.finish("llama")
    under_test.step()
    flights.here.clear()
    under_test.step()
    (wanted,) = under_test.wanted()
    assert (wanted.state, wanted.retry_in_s) == ("waiting", FIRST_RETRY_S)
    assert "evicted" in wanted.message
    assert flights.started == ["llama"]
    clock.now += FIRST_RETRY_S
    under_test.step()
    assert flights.started == ["llama", "llama"]


def test_models_that_do_not_fit_together_do_not_chase_each_other() -> None:
    """Each evicts the other as soon as it comes; they take turns ever more slowly instead of filling the link."""
    flights, clock = FakeFlights(), Clock()
    under_test = warming(flights, spec("one"), spec("two"), clock=clock)
    hour = clock.now + 3600
    while clock.now < hour:
        under_test.step()
        for name in ("one", "two"):
            if flights.running(name):
                flights.here.clear()
                flights.finish(name)
        clock.now += 5
    assert 2 < len(flights.started) < 40


def test_what_would_be_fetched_again_is_held_in_the_cache() -> None:
    """Otherwise a trim would evict it and the next look would fetch it; on-demand models may go."""
    flights = FakeFlights()
    kept: list[set[str]] = []
    specs = [spec("warm"), spec("rare", keep_warm=False)]
    under_test = Warming(cast(Flights, flights), specs, keep=kept.append, now=Clock())
    flights.here = {"warm", "rare"}
    under_test.step()
    under_test.want([])
    under_test.step()
    assert kept == [{"sha256:warm"}, set()]


def test_on_demand_models_are_left_alone() -> None:
    """Also while somebody else's job brings one: it lives by their interest."""
    flights = FakeFlights()
    under_test = warming(flights, spec("rare", keep_warm=False))
    under_test.step()
    assert flights.started == []
    assert states(under_test) == {"rare": "on-demand"}
    flights.start(spec("rare"), wanted_s=1.0)
    under_test.step()
    assert flights.wanted_s == {"rare": 1.0}
    assert states(under_test) == {"rare": "working"}


def test_a_new_configuration_forgives() -> None:
    """Whoever mends a credential sends SIGHUP and need not wait for the next retry."""
    flights = FakeFlights()
    under_test = warming(flights, spec("llama"))
    under_test.step()
    flights.fail("llama")
    under_test.step()
    under_test.step()
    assert flights.started == ["llama"]
    under_test.want([spec("llama"), spec("new")])
    under_test.step()
    assert flights.started == ["llama", "llama", "new"]


@pytest.mark.asyncio
async def test_the_loop_wakes_for_what_ends_and_what_is_wanted() -> None:
    """Nothing waits for the next regular look."""
    flights = FakeFlights()
    under_test = warming(flights, *(spec(f"m{n}", priority=-n) for n in range(WARM_AT_ONCE + 1)))
    running = asyncio.create_task(under_test.run())
    async with asyncio.timeout(4):  # below LOOK_AGAIN_S: a loop that only polls fails here
        await flights.start_of[f"m{WARM_AT_ONCE - 1}"].wait()
        flights.finish("m0")
        await flights.start_of[f"m{WARM_AT_ONCE}"].wait()
        flights.finish("m1")
        under_test.want([spec("new")])
        await flights.start_of["new"].wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_a_model_that_a_pod_waits_for_goes_first() -> None:
    """Whatever keep_warm and the limit say, urgently, and with short pauses between its tries."""
    flights, clock = FakeFlights(), Clock()
    others = [spec(f"m{n}", priority=5) for n in range(WARM_AT_ONCE)]
    asked = spec("asked", keep_warm=False)
    under_test = warming(flights, *others, asked, clock=clock)
    under_test.step()
    assert "asked" not in flights.started
    assert under_test.demand(asked) == 0.0
    under_test.step()
    assert flights.started[-1] == "asked"
    assert flights.urgent == {"asked"}
    pauses = []
    for _ in range(6):
        flights.fail("asked")
        under_test.step()
        pauses.append(under_test.demand(asked))
        clock.now += pauses[-1] + 0.1
        under_test.step()
    assert pauses == pytest.approx([5, 10, 20, 40, 60, 60])
    clock.now += INTEREST_S + 1
    flights.fail("asked")
    under_test.step()
    clock.now += LONGEST_RETRY_S + 1
    before = list(flights.started)
    under_test.step()
    assert flights.started == before, "nobody has asked for it any more"
    assert under_test.demand(spec("unknown")) == 0.0


def test_room_that_was_made_is_tried_at_once() -> None:
    """What failed for another reason keeps its pause."""
    flights, clock = FakeFlights(), Clock()
    full, broken = spec("full"), spec("broken")
    under_test = warming(flights, full, broken, clock=clock)
    under_test.step()
    flights.fail("full", "no-room")
    flights.fail("broken")
    under_test.step()
    under_test.room_was_made()
    under_test.step()
    assert flights.started == ["full", "broken", "full"]
    assert under_test.retry_in_s(broken) == FIRST_RETRY_S
    assert under_test.retry_in_s(spec("unknown")) == 0.0


def test_another_assignment_changes_nothing_for_what_stays() -> None:
    """Pauses go on, unlike after a person changed the file; what is wanted no more is let go."""
    flights, clock = FakeFlights(), Clock()
    broken, gone = spec("broken"), spec("gone")
    under_test = warming(flights, broken, gone, clock=clock)
    under_test.step()
    flights.fail("broken")
    under_test.step()
    under_test.want([broken, spec("new")], afresh=False)
    under_test.step()
    assert flights.started == ["broken", "gone", "new"]
    assert flights.let_gone == {"gone"}
    under_test.want([broken])
    under_test.step()
    assert flights.started[-1] == "broken"


def test_the_same_download_for_other_reasons_goes_on() -> None:
    """A model that only a pod wanted is planned here now: what runs is not ended and begun anew."""
    flights = FakeFlights()
    under_test = warming(flights, spec("llama", keep_warm=False), spec("gone"))
    under_test.demand(spec("llama", keep_warm=False))
    under_test.step()
    under_test.want([spec("llama", priority=3)], afresh=False)
    under_test.step()
    assert flights.let_gone == {"gone"}
    assert sorted(flights.started) == ["gone", "llama"]
