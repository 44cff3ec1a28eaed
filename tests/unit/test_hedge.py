"""Which late pieces are asked for twice."""

from __future__ import annotations

from dataclasses import dataclass

from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.transfer.hedge import EXTRA_SHARE, FEWEST, LOST_FACTOR, Hedging


@dataclass
class Piece:
    started: float
    length: int = PIECE_SIZE_BYTES
    hedgeable: bool = True


def seasoned(pieces: int = 40, seconds: float = 1.0) -> Hedging:
    """One that has seen pieces of one second each."""
    hedging = Hedging()
    for _ in range(pieces):
        hedging.arrived(PIECE_SIZE_BYTES, seconds)
    return hedging


def test_a_piece_later_than_twice_the_expected_is_chosen() -> None:
    """The late one is, the one within its time is not."""
    late, in_time = Piece(started=0.0), Piece(started=1.5)
    assert seasoned().choose(2.1, [late, in_time], spare=4) == [late]


def test_without_spare_connections_nothing_is_chosen() -> None:
    """A hedge never takes a connection that first requests could use."""
    assert seasoned().choose(100.0, [Piece(started=0.0)], spare=0) == []


def test_nothing_is_chosen_before_enough_is_known() -> None:
    """Below the fewest pieces there is no expectation; at it there is."""
    piece = Piece(started=0.0, length=1024)
    assert seasoned(FEWEST - 1).choose(100.0, [piece], spare=1) == []
    assert seasoned(FEWEST).choose(100.0, [piece], spare=1) == [piece]


def test_extra_bytes_stay_within_their_share() -> None:
    """Of forty pieces' bytes, five per cent are two pieces; more are allowed only as more arrives."""
    hedging = seasoned(40)
    late = [Piece(started=float(number) / 10) for number in range(10)]
    assert len(hedging.choose(4.0, late, spare=10)) == 40 * EXTRA_SHARE
    assert hedging.choose(4.0, late, spare=10) == []
    for _ in range(20):
        hedging.arrived(PIECE_SIZE_BYTES, 1.0)
    assert len(hedging.choose(4.0, late, spare=10)) == 1


def test_a_piece_that_hangs_is_asked_for_again_when_the_share_is_spent() -> None:
    """One at a time: what it takes too much must come in before the next one."""
    hedging = seasoned(40)
    late = [Piece(started=float(number) / 10) for number in range(10)]
    assert len(hedging.choose(4.0, late, spare=10)) == 2
    hanging = [Piece(started=0.0), Piece(started=0.1)]
    assert hedging.choose(LOST_FACTOR, hanging, spare=10) == []
    assert hedging.choose(LOST_FACTOR + 0.05, hanging, spare=10) == hanging[:1]
    assert hedging.choose(100.0, hanging[1:], spare=10) == []
    for _ in range(20):
        hedging.arrived(PIECE_SIZE_BYTES, 1.0)
    assert hedging.choose(100.0, hanging[1:], spare=10) == hanging[1:]


def test_the_latest_are_chosen_first_and_hedged_ones_never_again() -> None:
    """Whoever has waited longest has the best claim."""
    oldest, old, hedged = Piece(started=1.0), Piece(started=2.0), Piece(started=0.0, hedgeable=False)
    assert seasoned(20).choose(50.0, [old, hedged, oldest], spare=1) == [oldest]


def test_the_slower_ones_among_the_recent_set_the_expectation() -> None:
    """Where every fifth piece takes five seconds, five seconds are nothing to worry about; eleven are."""
    hedging = Hedging()
    for number in range(60):
        hedging.arrived(PIECE_SIZE_BYTES, 5.0 if number % 5 == 0 else 1.0)
    piece = Piece(started=0.0)
    assert hedging.choose(9.9, [piece], spare=1) == []
    assert hedging.choose(10.1, [piece], spare=1) == [piece]


def test_short_pieces_are_expected_sooner_but_do_not_set_the_pace() -> None:
    """A tail of 1 MiB says little about 16 MiB, and is late after its own share of the time."""
    hedging = seasoned(FEWEST, seconds=16.0)
    for _ in range(100):
        hedging.arrived(1024, 5.0)
    assert hedging.expected_s(PIECE_SIZE_BYTES) == 16.0
    assert hedging.expected_s(PIECE_SIZE_BYTES // 16) == 1.0


def test_fast_pieces_are_not_hedged_for_milliseconds() -> None:
    """Twice of almost nothing is not late."""
    piece = Piece(started=0.0)
    hedging = seasoned(40, seconds=0.01)
    assert hedging.choose(0.4, [piece], spare=1) == []
    assert hedging.choose(0.6, [piece], spare=1) == [piece]
