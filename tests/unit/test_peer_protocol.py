"""What peers say to each other: what is read is what was written, what is signed is bound, what is wrong is refused."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.peers import protocol
from cacheagent.peers.gate import Judge, Turned
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.orders import Have, Serve
from cacheagent.peers.rules import MOST_STRETCH, Home, find_slow, stretch, tail
from cacheagent.peers.shelf import Shelf

DIGEST = "sha256:" + "ab" * 32
CLIENT, SERVER, STRANGER = (NodeKey(bytes([number]) * 32) for number in (1, 2, 3))
NONCE = b"n" * 32
NOW = 1_790_000_000.0


def shelf(**changes: object) -> Shelf:
    """Of a digest with two files of one piece each, for the members n1 (us) and n2."""
    order = Serve(
        digest=DIGEST,
        members={"n1": (SERVER.public,), "n2": (CLIENT.public,)},
        homes=("n1", "n2"),
        sizes=(1000, 2000),
        paths=("/a", "/b"),
    )
    return Shelf(msgspec.structs.replace(order, **changes), "n1", SERVER)


def ask(key: NodeKey = CLIENT, **changes: object) -> protocol.Ask:
    """What an honest n2 says, with changes before it signs."""
    plain = protocol.Ask(
        version=1,
        digest=DIGEST,
        client="n2",
        server="n1",
        time_s=int(NOW),
        server_nonce=NONCE,
        client_nonce=os.urandom(32),
        pieces=2,
        wants=protocol.pack_set([0, 1]),
        adopt=b"",
        signature=b"",
    )
    changed = msgspec.structs.replace(plain, **changes)
    return protocol.signed(changed, key.sign(protocol.ask_to_sign(changed)))


def test_an_honest_member_is_let_in() -> None:
    """The positive control of all refusals below."""
    Judge("n1", NONCE, NOW).judge(ask(), shelf())
    Judge("n1", NONCE, NOW).judge(ask(time_s=int(NOW) - 299), shelf())
    both = {"n1": (SERVER.public,), "n2": (STRANGER.public, CLIENT.public)}
    Judge("n1", NONCE, NOW).judge(ask(), shelf(members=both))  # a key that is being changed


def test_who_comes_while_the_server_is_still_told_what_is_here_comes_again() -> None:
    """It would take a part for all that there is. Once that was told, later changes keep nobody out."""
    told = shelf(hashes=b"h" * 32, goes_on=True)
    with pytest.raises(Turned) as turned:
        Judge("n1", NONCE, NOW).judge(ask(), told)
    assert turned.value.code == "busy"
    rest = msgspec.structs.replace(told.order, hashes=b"i" * 32, first=1, goes_on=False)
    told.update(rest)
    Judge("n1", NONCE, NOW).judge(ask(), told)
    assert [told._hashes[piece] for piece in told.proved()] == [b"h" * 32, b"i" * 32]
    told.update(msgspec.structs.replace(rest, goes_on=True))
    Judge("n1", NONCE, NOW).judge(ask(), told)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (msgspec.structs.replace(ask(), signature=b""), "signature"),
        (ask(STRANGER), "signature"),
        (ask(time_s=int(NOW) - 301), "time"),
        (ask(time_s=int(NOW) + 301), "time"),
        (ask(server_nonce=b"m" * 32), "nonce"),  # a replay: signed for another connection
        (ask(client_nonce=b""), "nonce"),
        (ask(client="n3"), "member"),
        (ask(SERVER, client="n1"), "member"),  # ourselves, reflected
        (ask(server="n3"), "member"),
        (msgspec.structs.replace(ask(digest="sha256:" + "cd" * 32), digest=DIGEST), "signature"),  # of another model
        (msgspec.structs.replace(ask(), wants=protocol.pack_set([0])), "signature"),
        (msgspec.structs.replace(ask(), adopt=protocol.pack_set([0])), "signature"),
        (ask(pieces=3), "wants"),
        (ask(version=2), "version"),
    ],
)
def test_nobody_else_is(asked: protocol.Ask, code: str) -> None:
    """Each with the code that says why."""
    with pytest.raises(Turned) as turned:
        Judge("n1", NONCE, NOW).judge(asked, shelf())
    assert turned.value.code == code


def test_a_member_that_was_removed_is_refused() -> None:
    """Its signature is right and does not help."""
    with pytest.raises(Turned, match="not a member"):
        Judge("n1", NONCE, NOW).judge(ask(), shelf(members={"n1": (SERVER.public,)}))


def test_later_requests_are_bound_to_their_connection_and_place() -> None:
    """A request of another connection, or with another number, has a wrong signature."""
    here = protocol.Session(DIGEST, "n2", "n1", b"c" * 32, NONCE)
    plain = protocol.More(number=1, wants=b"\1", adopt=b"", drop=b"", signature=b"")
    more = protocol.signed(plain, CLIENT.sign(protocol.more_to_sign(here, plain)))
    Judge.require_signed(more, here, shelf())
    with pytest.raises(protocol.ProtocolError):
        Judge.require_signed(more, here._replace(server_nonce=b"x" * 32), shelf())
    with pytest.raises(protocol.ProtocolError):
        Judge.require_signed(msgspec.structs.replace(more, number=2), here, shelf())


@given(st.sets(st.integers(0, 999)))
def test_sets_of_pieces_come_back(numbers: set[int]) -> None:
    """Whatever is packed is unpacked; a piece that there is not is refused."""
    packed = protocol.pack_set(numbers)
    assert set(protocol.unpack_set(packed, 1000)) == numbers
    if numbers:
        with pytest.raises(protocol.ProtocolError):
            protocol.unpack_set(packed, max(numbers))


def test_a_set_is_no_longer_than_its_pieces() -> None:
    """What would list millions of pieces is refused before it is read."""
    assert protocol.unpack_set(b"\xff\x03", 10) == list(range(10))
    with pytest.raises(protocol.ProtocolError, match="a set of 3 bytes"):
        protocol.unpack_set(b"\xff\x03\x00", 10)


@pytest.mark.parametrize("read", [protocol.read_note, protocol.read_request])
def test_values_within_values_without_end_are_refused(read: Callable[[bytes], object]) -> None:
    """A map whose kind comes last, after arrays in arrays, which the decoder goes down into to find it."""
    deep = b"\x82\xa1a" + b"\x91" * 2000 + b"\xc0\xa4type\xa3ask"
    with pytest.raises(protocol.ProtocolError):
        read(deep)


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_refused(data: bytes) -> None:
    """Readers answer with a message or a ProtocolError, whatever comes."""
    readers: tuple[Callable[[bytes], object], ...] = (protocol.read_note, protocol.read_request, protocol.read_seal)
    for read in readers:
        with contextlib.suppress(protocol.ProtocolError):
            read(data)


def test_versions_agree_on_the_highest() -> None:
    """An agent that speaks more than we do is met at ours; one that has none of ours is not met."""
    assert protocol.highest_version((1, 2, 3)) == 1
    with pytest.raises(protocol.ProtocolError, match="versions"):
        protocol.highest_version((2, 3))


def test_a_greeting_of_another_version_is_understood() -> None:
    """And a refusal, whatever more they say: there is no version yet that both have agreed on. Of what is said
    afterwards, which is of that version, nothing unknown is passed over."""
    words = {"type": "hello", "versions": (1, 2), "nonce": NONCE, "magic": protocol.MAGIC}
    said = msgspec.msgpack.encode({**words, "more": "of it"})
    assert protocol.read_note(said) == protocol.Hello(versions=(1, 2), nonce=NONCE)
    refusal = {"type": "refusal", "code": "busy", "message": "", "more": "of it"}
    assert protocol.read_note(msgspec.msgpack.encode(refusal)) == protocol.Refusal(code="busy", message="")
    welcome = {"type": "welcome", "complete": True, "have": b"", "homes": (), "signature": b""}
    assert isinstance(protocol.read_note(msgspec.msgpack.encode(welcome)), protocol.Welcome)
    with pytest.raises(protocol.ProtocolError):
        protocol.read_note(msgspec.msgpack.encode({**welcome, "more": "of it"}))


def test_a_piece_is_vouched_for_by_whoever_sealed_it() -> None:
    """What came from another member goes on under its seal; what this node fetched goes under its own."""
    mine = shelf()
    mine.have(Have(digest=DIGEST, piece=0, blake3=b"h" * 32))
    theirs = CLIENT.sign(protocol.seal_to_sign(DIGEST, 1, 2000, b"i" * 32))
    mine.have(Have(digest=DIGEST, piece=1, blake3=b"i" * 32, signer="n2", signature=theirs))
    with mine.condition:
        own, other = mine.seal(0), mine.seal(1)
    assert own is not None
    assert other == (b"i" * 32, theirs, "n2")
    assert (own.signer, own.signature) == ("n1", SERVER.sign(protocol.seal_to_sign(DIGEST, 0, 1000, b"h" * 32)))
    assert mine.is_complete
    mine.lose([0])
    with mine.condition:
        assert mine.proved() == [1]
        assert mine.seal(0) is None
        assert (mine.available(0), mine.available(1)) == (0, 2000)


def home(name: str, delivered: int, owed: int = 50, *, rate: float = 1.0, age_s: float = 60) -> Home:
    """One that has been at it for a minute."""
    return Home(name, delivered, owed, rate, age_s)


def test_a_home_is_slow_against_the_others() -> None:
    """Half of what the others have delivered, and seconds behind; silent while the others are not; never alone."""
    others = [home(name, 100, owed=20) for name in "abc"]
    assert find_slow([*others, home("x", 49)]) == ["x"]
    assert find_slow([*others, home("x", 51)]) == [], "it has delivered half of what they have"
    assert find_slow([*others, home("x", 49, owed=30)]) == [], "it will be done soon enough"
    assert find_slow([home(name, 5, owed=20) for name in "abc"] + [home("x", 2, rate=2)]) == [], "chance"
    assert find_slow([*others[:2], home("x", 9), home("y", 9)]) == [], "half of all: it is this node"
    assert find_slow([home("a", 100, owed=20), home("b", 12), home("x", 9)]) == [], "one of two others is as late"
    assert find_slow([*others[:2], home("x", 9)]) == ["x"], "none of two others is"
    assert find_slow([*others, home("x", 30, owed=100)], factor=4) == [], "it takes more than that"
    assert find_slow([*others, home("x", 24, owed=100)], factor=4) == ["x"]
    assert find_slow([*others, home("x", 49, age_s=1)]) == [], "it has just been relieved"
    assert find_slow([*others, home("x", 49, owed=0)]) == [], "it is done"
    assert find_slow([*others, home("x", 90, rate=0)]) == ["x"], "it stopped"
    assert find_slow([home(name, 10, rate=0) for name in "abcx"]) == [], "the origin stopped"
    assert find_slow([home("x", 0, rate=0)]) == [], "nobody to compare with"
    assert find_slow([*others, home("x", 49)], times=2) == ["x"]
    assert find_slow([*others, home("x", 49)], times=10) == [], "the origin takes as long for a piece"
    assert find_slow([*others, home("x", 90, rate=0, age_s=20)], times=10) == [], "it would have to wait, too"
    assert find_slow([*others, home("x", 90, rate=0)], times=10) == ["x"], "it stopped all the same"


@pytest.mark.parametrize(
    ("origin_s", "part_s", "times"), [(0, 0, 1), (2, 0.5, 1), (5, 0.5, 2.5), (2, 1.5, 3), (1000, 0, MOST_STRETCH)]
)
def test_patience_is_stretched_where_the_origin_or_all_are_slow(origin_s: float, part_s: float, times: float) -> None:
    """By the longer of both, and not for ever."""
    assert stretch(origin_s, part_s) == times


def test_the_tail_is_half_at_least_one() -> None:
    """What it would send last; what has begun goes last of all."""
    assert tail([4, 1, 3, 2], set()) == [3, 4]
    assert tail([7], set()) == [7]
    assert tail([1, 2, 3, 4], {3, 4}) == [1, 2]


def test_reading_a_large_set_is_quick(tmp_path: Path) -> None:
    """62,500 pieces in well under a second."""
    began = time.process_time()
    assert len(protocol.unpack_set(protocol.pack_set(range(62_500)), 62_500)) == 62_500
    assert time.process_time() - began < 1
