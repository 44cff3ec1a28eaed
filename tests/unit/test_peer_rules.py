"""Rules of an exchange that need no event loop: who may take part, what a broken connection means, what is logged."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.peers.answers import Answers
from cacheagent.peers.budget import UNKNOWN, share
from cacheagent.peers.own import AT_ORIGIN, MOST_AT_ORIGIN, MOST_OF_FEW, RECENT, STEP_OF_FEW, OwnPieces
from cacheagent.peers.quiet import EVERY_S, MOST, Quiet
from cacheagent.peers.rules import FACTOR, FULL_FACTOR, NO_PROGRESS_S, PROGRESS_BYTES, Flow, Movement
from cacheagent.peers.standing import MOST_FAULTS, MOST_FRUITLESS, Break, Standing, after

OTHERS = 8


def test_who_is_welcome() -> None:
    """A liar never again, in any exchange; who makes faults for this digest; who left the list until it is back."""
    liars: set[str] = set()
    here, elsewhere = Standing(liars), Standing(liars)
    names = ("a", "b", "c")
    for _ in range(MOST_FAULTS - 1):
        here.fault("b")
    here.relist(["a", "b"], names)
    assert [name for name in names if here.is_welcome(name)] == ["a", "b"]
    here.fault("b")
    here.relist(["b", "c"], names)
    assert [name for name in names if here.is_welcome(name)] == ["c"]
    assert all(elsewhere.is_welcome(name) for name in names)
    liars.add("a")
    here.relist(names, names)
    assert not here.is_welcome("a")
    assert not elsewhere.is_welcome("a")


@pytest.mark.parametrize(
    ("end", "following"),
    [
        (Break("reset", "", True, 1, 0), "again"),
        (Break("reset", "", True, 1, MOST_FRUITLESS - 1), "again"),
        (Break("reset", "", True, 1, MOST_FRUITLESS), "give up"),
        (Break("reset", "", True, 2, 0), "give up"),
        (Break("reset", "digest", True, 1, 0), "give up"),
        (Break("connect", "", False, 1, 0), "wait"),
        (Break("closed", "digest", False, 1, 0), "wait"),
        (Break("closed", "member", False, 3, 0), "wait"),
        (Break("closed", "version", False, 1, 0), "give up"),
        (Break("timeout", "", False, 1, 0), "give up"),
    ],
)
def test_what_follows_a_broken_connection(end: Break, following: str) -> None:
    """At once again after a good one, a few times; patience with who was never reached; else others are asked."""
    assert after(end) == following


def test_the_log_says_a_thing_once_a_minute() -> None:
    """With how often it happened; another reason, or another peer, is another thing."""
    quiet = Quiet()
    assert quiet.count(("n1", "time"), 0.0) == 1
    assert [quiet.count(("n1", "time"), at) for at in (1.0, 2.0, EVERY_S - 1)] == [0, 0, 0]
    assert quiet.count(("n1", "nonce"), 3.0) == 1
    assert quiet.count(("n2", "time"), 3.0) == 1
    assert quiet.count(("n1", "time"), EVERY_S) == 4


def test_made_up_names_are_counted_together() -> None:
    """So many lines a minute and not more, whoever asks; a minute later names are told apart again."""
    quiet = Quiet()
    said = [quiet.count((f"name {number}", "member"), 1.0) for number in range(10 * MOST)]
    assert sum(count > 0 for count in said) == MOST + 1
    assert quiet.count(("n1", "time"), 2.0) == 0
    assert quiet.count(("n1", "time"), 2.0 + EVERY_S) == 1


def test_dripping_is_no_movement() -> None:
    """Less than a little in a while; enough of it, or a piece, begins the while anew."""
    movement = Movement(0.0)
    for second in range(1, 16):
        movement.came(float(second), PROGRESS_BYTES // 20)
    assert not movement.is_stalled(NO_PROGRESS_S)
    assert movement.is_stalled(NO_PROGRESS_S + 0.1)
    movement.came(15.0, PROGRESS_BYTES)
    assert not movement.is_stalled(30.0)
    movement.restart(30.0)
    assert not movement.is_stalled(45.0)
    assert movement.is_stalled(45.1)


def test_the_origin_is_asked_for_a_few_at_a_time() -> None:
    """In order, not before it is known who has what, and not for what nobody needs; the first one alone."""
    asked: list[int] = []

    def ask(piece: int) -> bool:
        asked.append(piece)
        return piece != 3

    own = OwnPieces(ask, OTHERS)
    own.add([9, 3])
    assert asked == []
    own.add([*own.open(), 5])
    assert asked == [3, 5], "3 is needed by nobody"
    own.add([7, 5, 1])
    assert asked == [3, 5]
    own.done([5])
    assert asked == [3, 5, 1, 5]
    assert set(own.at_origin) == {1, 5}
    assert len(own.at_origin) == AT_ORIGIN
    own.close()
    own.done([1, 5])
    assert asked == [3, 5, 1, 5]


@pytest.mark.parametrize(
    ("others", "each", "most"),
    [
        (OTHERS, 0.0, AT_ORIGIN + 1),
        (OTHERS, 1.0, MOST_AT_ORIGIN),
        (1, 0.0, AT_ORIGIN + STEP_OF_FEW),
        (1, 1.0, MOST_OF_FEW),
        (0, 1.0, MOST_OF_FEW),
        (2, 0.0, AT_ORIGIN + 1),
        (2, 1.0, MOST_OF_FEW // 2),
    ],
)
def test_the_origin_is_asked_for_more_where_more_then_comes(
    monkeypatch: pytest.MonkeyPatch, others: int, each: float, most: int
) -> None:
    """As long as each connection brings its own part; where they share a link that is full, one more is tried. Few
    nodes may ask for more."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    own = OwnPieces(lambda _piece: True, others)
    own.add(range(10_000))
    own.add(own.open())
    own.done([0])
    counts = []
    for _half_second in range(300):
        now += 0.5
        own.inflow(20e6 + 10e6 * each * len(own.at_origin))
        counts.append(len(own.at_origin))
    assert (min(counts), max(counts)) == (AT_ORIGIN, most)


@pytest.mark.parametrize(("share", "most"), [(0.4, MOST_OF_FEW), (0.9, AT_ORIGIN)])
def test_a_node_takes_no_more_than_its_share_of_what_comes(
    monkeypatch: pytest.MonkeyPatch, share: float, most: int
) -> None:
    """Two nodes: where nine tenths come from the origin, more of its own would come instead of the other one's."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    own = OwnPieces(lambda _piece: True, 1)
    own.add(range(10_000))
    own.add(own.open())
    own.done([0])
    came = 0
    for _half_second in range(300):
        now += 0.5
        in_all = 10e6 * len(own.at_origin)
        came += int(share * in_all / 2)
        own.came(1, came)
        own.inflow(in_all)
    assert len(own.at_origin) == most


def test_how_long_the_origin_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest of the last few pieces, and of those that it owes; what was given back says nothing."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    own = OwnPieces(lambda _piece: True, OTHERS)
    assert own.origin_s() == 0
    own.add(range(10))
    own.add(own.open())
    now += 5
    assert own.origin_s() == 5
    assert own.wait_s() == 9 * 5 / AT_ORIGIN
    own.done([0])
    now += 1
    assert own.origin_s() == 5
    for piece in range(1, 1 + RECENT):
        own.done([piece])
    now += 0.5
    assert own.origin_s() == 1


@given(budget=st.integers(1, 2**40), members=st.integers(1, 5000))
def test_all_parts_of_a_budget_are_no_more_than_it(budget: int, members: int) -> None:
    """And not much less; who does not know how many there are takes what one of 64 gets."""
    part = share(budget, members)
    assert part >= 1
    assert part * members <= max(budget, members)
    assert (part + 1) * members > budget
    assert share(budget, 0) == share(budget, UNKNOWN)
    assert share(0, members) == share(0, 0) == 0


def test_enough_answers() -> None:
    """All have said something, or two have nothing and nobody has anything."""
    answers = Answers()
    assert not answers.suffice(["a", "b"])
    answers.heard("a", has_some=False, is_cold=False)
    answers.heard("b", has_some=False, is_cold=True)
    assert answers.suffice(["a", "b"])
    assert not answers.suffice(["a", "b", "c", "d"])
    answers.heard("c", has_some=False, is_cold=True)
    assert answers.suffice(["a", "b", "c", "d"])
    answers.heard("c", has_some=True, is_cold=True)
    assert not answers.suffice(["a", "b", "c", "d"])


def test_a_full_link_takes_more_to_call_a_home_slow() -> None:
    """As long as all together bring about as much as ever, they are late by each other's doing."""
    flow = Flow()
    factors = [flow.factor(rate) for rate in (0.0, 5.0, 20.0, 17.0, 15.0, 0.0, 18.0)]
    assert [factor == FULL_FACTOR for factor in factors] == [False, True, True, True, False, False, True]
    assert set(factors) == {FACTOR, FULL_FACTOR}
