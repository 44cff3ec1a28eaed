"""Who goes for whose room: the order, what is held, and that shared blobs are counted for what they give back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cacheagent.eviction import (
    Eviction,
    Held,
    Resident,
    Residents,
    evictable_bytes,
    no_room_sentence,
    plan_eviction,
)

GB = 10**9


def version(digest: str, *blobs: str, priority: int = 0, last_used: float = 0.0, held: Held = "") -> Resident:
    return Resident(digest=digest, priority=priority, last_used=last_used, blobs=frozenset(blobs), held=held)


def sized(*versions: Resident, wanted: frozenset[str] = frozenset(), **sizes: int) -> Residents:
    return Residents(versions=versions, sizes=sizes, wanted=wanted)


def test_the_one_used_longest_ago_goes_first_and_only_as_many_as_needed() -> None:
    """Least recently used among equals."""
    here = sized(version("new", "n", last_used=9), version("old", "o", last_used=1), n=10, o=10)
    assert plan_eviction(here, 10) == Eviction(digests=("old",), freed_bytes=10)
    assert plan_eviction(here, 11) == Eviction(digests=("old", "new"), freed_bytes=20)
    assert plan_eviction(here, 0) == Eviction(digests=(), freed_bytes=0)


def test_a_lower_priority_goes_before_an_older_use() -> None:
    """Priority first."""
    here = sized(version("dear", "d", priority=1, last_used=1), version("cheap", "c", last_used=9), c=10, d=10)
    assert plan_eviction(here, 5) == Eviction(digests=("cheap",), freed_bytes=10)


def test_what_is_held_stays_even_if_there_is_not_enough() -> None:
    """No plan rather than a wrong one; the same versions go when nothing holds them."""
    for held in ("pinned", "mounted", "being fetched", "under repair", "more important"):
        here = sized(version("held", "h", held=held), version("free", "f", last_used=5), h=10, f=10)
        assert plan_eviction(here, 20) is None
        assert plan_eviction(here, 10) == Eviction(digests=("free",), freed_bytes=10)
    assert plan_eviction(sized(version("a", "h"), version("b", "f"), h=10, f=10), 20) is not None


def test_a_shared_blob_gives_nothing_until_its_last_version_goes() -> None:
    """Two revisions share 29 shards: evicting one gives back one shard."""
    here = sized(
        version("v1", "shared", "a", last_used=1), version("v2", "shared", "b", last_used=2), shared=29, a=1, b=1
    )
    assert plan_eviction(here, 1) == Eviction(digests=("v1",), freed_bytes=1)
    assert plan_eviction(here, 2) == Eviction(digests=("v1", "v2"), freed_bytes=31)
    assert evictable_bytes(here) == 31


def test_a_blob_that_a_version_on_its_way_needs_gives_nothing() -> None:
    """It would be fetched again at once."""
    here = sized(version("v1", "shared", "a"), wanted=frozenset({"shared"}), shared=29, a=1)
    assert evictable_bytes(here) == 1
    assert plan_eviction(here, 2) is None


def test_a_small_one_is_spared_when_a_large_one_goes_anyway() -> None:
    """What was first in line and turned out not to be needed stays."""
    here = sized(version("small", "s", last_used=1), version("large", "l", last_used=2), s=1, l=100)
    assert plan_eviction(here, 100) == Eviction(digests=("large",), freed_bytes=100)


def test_the_refusal_tells_who_holds_what() -> None:
    """The sentence of the design, with its numbers; shared blobs count once."""
    here = sized(
        version("a", "big", "x", held="pinned"),
        version("b", "big", held="pinned"),
        version("c", "y", held="pinned"),
        version("d", "m", held="mounted"),
        version("e", "r", held="under repair"),
        version("f", "g", held="mounted before the boot"),
        big=300 * GB,
        x=5 * GB,
        y=5 * GB,
        m=7 * GB,
        r=GB,
        g=2 * GB,
    )
    sentence = no_room_sentence(here, needed_bytes=141 * GB, usable_bytes=20 * GB, freeable_bytes=96 * GB)
    assert sentence == (
        "needs 141 GB: 20 GB free above the floor, 96 GB can be freed, 3 pinned models hold 310 GB, "
        "1 mounted model holds 7 GB, 1 model under repair holds 1 GB, "
        "1 model that may be mounted since before the boot holds 2 GB"
    )


BLOBS = st.sampled_from("abcdefgh")
VERSIONS = st.lists(
    st.tuples(
        st.frozensets(BLOBS, min_size=1), st.integers(0, 2), st.integers(0, 5), st.sampled_from(["", "pinned", ""])
    ),
    max_size=6,
)


@given(VERSIONS, st.fixed_dictionaries({blob: st.integers(0, 50) for blob in "abcdefgh"}), st.integers(0, 200))
def test_a_plan_is_enough_exact_and_without_waste(
    drawn: list[tuple[frozenset[str], int, int, Held]], sizes: dict[str, int], needed: int
) -> None:
    """For any sharing: what it says it frees is what is freed; it is enough; nobody in it could stay; nobody held is in
    it; and there is none exactly when everything evictable is not enough."""
    versions = [
        Resident(digest=str(number), priority=priority, last_used=used, blobs=blobs, held=held)
        for number, (blobs, priority, used, held) in enumerate(drawn)
    ]
    here = Residents(versions=versions, sizes={blob: sizes[blob] for v in versions for blob in v.blobs})
    plan = plan_eviction(here, needed)
    assert (plan is None) == (evictable_bytes(here) < needed)
    if plan is None:
        return

    def freed(digests: set[str]) -> int:
        staying = {blob for v in versions if v.digest not in digests for blob in v.blobs}
        return sum(size for blob, size in here.sizes.items() if blob not in staying)

    going = set(plan.digests)
    assert freed(going) == plan.freed_bytes >= needed
    assert not any(v.held for v in versions if v.digest in going)
    assert all(freed(going - {digest}) < needed for digest in going)
