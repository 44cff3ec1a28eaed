"""What an agent knows of its peers: by one watch, by what was kept, and how long a fetch waits for it."""

from __future__ import annotations

import asyncio
import base64
from base64 import b64decode

import msgspec
import pytest

from cacheagent.kube.api import MODEL_CACHE_PEERS, KubeUnavailable, Object
from cacheagent.kube.convert import to_json
from cacheagent.kube.names import member_label
from cacheagent.kube.objects import ModelCachePeersSpec, PeerBelow, PeerMember
from cacheagent.kube.peer_lists import PeerLists
from cacheagent.member import Member
from tests.fakes.kube import FakeKube
from tests.fakes.node_agents import digest_of
from tests.fakes.running import running, until

pytestmark = pytest.mark.asyncio
A1, B1 = digest_of("a1"), digest_of("b1")


def key_of(name: str) -> str:
    """A public key, as far as anybody can tell."""
    return base64.b64encode(name.encode().ljust(32, b"-")).decode()


def member(name: str, key: str = "") -> PeerMember:
    """As the controller lists it."""
    return PeerMember(name=name, address=f"{name}.example:7411", key=key or key_of(name), zone="a")


ME = Member(name="n1", address="n1.example:7411", key=key_of("n1"))


def written(name: str, *members: PeerMember, digests: tuple[str, ...] = (A1,)) -> Object:
    """The controller's object."""
    labels = {member_label(each.name): "" for each in members}
    spec = to_json(ModelCachePeersSpec(digests=digests, members=members))
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


class Lists:
    """Those of node n1, and how often it had news."""

    def __init__(self, hold_s: float = 60.0, me: Member = ME) -> None:
        self.kube = FakeKube()
        self.news = 0
        self.lists = PeerLists(self.kube, me, changed=self._changed, hold_s=hold_s)

    def _changed(self) -> None:
        self.news += 1

    def names(self, digest: str = A1) -> list[str]:
        """Who is known to want it."""
        return [each.name for each in self.lists.circle(digest).near]


async def test_how_many_take_from_one_origin() -> None:
    """Nobody knows before the lists are there; then those of the list, or of all lists where it says so, and a version
    without a list is for this node alone."""
    here = Lists()
    here.kube.put(MODEL_CACHE_PEERS, written("a", member("n1"), member("n2")))
    many = written("b", member("n1"), member("n2"), digests=(B1,))
    many["spec"]["nodes"] = 128
    here.kube.put(MODEL_CACHE_PEERS, many)
    assert [here.lists.sharers(digest) for digest in (A1, B1, digest_of("c1"))] == [0, 0, 0]
    async with running(here.lists.run()):
        await until(lambda: here.names() == ["n1", "n2"], "the lists are there")
        assert [here.lists.sharers(digest) for digest in (A1, B1, digest_of("c1"))] == [2, 128, 1]


async def test_it_knows_who_is_above_and_below() -> None:
    """From the one list that it is on; a key that is none spoils nothing. In a tree the root has half of what an
    origin may be asked, and all have the other half."""
    scene = Lists()
    spec = ModelCachePeersSpec(
        digests=(A1,),
        members=(member("n1"), member("n2")),
        nodes=128,
        level=2,
        above=(member("n3"),),
        below=(PeerBelow(name="n4", key=key_of("n4")), PeerBelow(name="n5", key="none")),
    )
    root = msgspec.structs.replace(spec, digests=(B1,), level=1, above=())
    for name, each in (("one", spec), ("two", root)):
        written_so = {**written(name, member("n1"), member("n2")), "spec": to_json(each)}
        scene.kube.put(MODEL_CACHE_PEERS, written_so)
    async with running(scene.lists.run()):
        await until(lambda: scene.names() == ["n1", "n2"], "it knows")
        circle = scene.lists.circle(A1)
        assert [each.name for each in circle.above] == ["n3"]
        assert circle.keys.keys() == {"n1", "n2", "n3", "n4"}
        assert circle.below == {"n4": (b64decode(key_of("n4")),)}
        assert (circle.level, scene.lists.circle(B1).level) == (2, 1)
        assert (scene.lists.sharers(A1), scene.lists.sharers(B1)) == (256, 4)


async def test_it_knows_the_lists_that_it_is_on() -> None:
    """And no other; as they change; one that it is taken off is gone."""
    scene = Lists()
    scene.kube.put(MODEL_CACHE_PEERS, written("one", member("n1"), member("n2"), digests=(A1, B1)))
    scene.kube.put(MODEL_CACHE_PEERS, written("other", member("n3"), member("n4")))
    async with running(scene.lists.run()):
        await until(lambda: scene.names() == ["n1", "n2"], "it knows")
        assert scene.names(B1) == ["n1", "n2"]
        assert scene.lists.circle(A1).near[1] == Member(
            name="n2", address="n2.example:7411", key=key_of("n2"), zone="a"
        )
        scene.kube.put(MODEL_CACHE_PEERS, written("one", member("n1"), member("n2"), member("n5")))
        await until(lambda: scene.names() == ["n1", "n2", "n5"], "it knows")
        assert scene.names(B1) == []
        scene.kube.put(MODEL_CACHE_PEERS, written("one", member("n2"), member("n5")))
        await until(lambda: scene.names() == [], "it knows")
    assert scene.news >= 3


async def test_the_newest_of_two_lists_holds_and_nonsense_is_left_out() -> None:
    """While one takes the place of another both are there; a member that is none spoils no list."""
    scene = Lists()
    scene.kube.put(MODEL_CACHE_PEERS, written("old", member("n1"), member("n2")))
    broken = PeerMember(name="n9", address="nowhere", key=key_of("n9"))
    scene.kube.put(MODEL_CACHE_PEERS, written("new", member("n1"), member("n3"), broken))
    async with running(scene.lists.run()):
        await until(lambda: scene.names() == ["n1", "n3"], "it knows")


async def test_a_fetch_waits_until_others_know_this_node_by_its_key() -> None:
    """On no list, and on one with the key of before, it is not reached by anybody; afterwards it waits no more."""
    scene = Lists()
    async with running(scene.lists.run()):
        assert scene.lists.wait(A1)
        scene.kube.put(MODEL_CACHE_PEERS, written("one", member("n1", key_of("old")), member("n2")))
        await until(lambda: scene.names() == ["n1", "n2"], "it knows")
        assert scene.lists.wait(A1)
        scene.kube.put(MODEL_CACHE_PEERS, written("one", member("n1"), member("n2")))
        await until(lambda: not scene.lists.wait(A1), "it knows")
        scene.kube.remove(MODEL_CACHE_PEERS, "one")
        await until(lambda: scene.names() == [], "it knows")
        assert not scene.lists.wait(A1), "it may be on its way by now"
        scene.lists.forget({B1})
        assert scene.lists.wait(A1), "wanted again, it is another fetch"


@pytest.mark.parametrize(
    ("listed", "waits"), [("old,n1", False), ("n1,after", False), ("n1", False), ("next,old", True)]
)
async def test_a_fetch_does_not_wait_where_others_know_the_present_key(listed: str, *, waits: bool) -> None:
    """Whatever else is listed: they had it as the next one, or have not heard of what comes after it."""
    scene = Lists(me=msgspec.structs.replace(ME, key=f"{key_of('n1')},{key_of('next')}"))
    keys = ",".join(map(key_of, listed.split(",")))
    scene.lists.start([ModelCachePeersSpec(digests=(A1,), members=(member("n1", keys), member("n2")))])
    assert scene.lists.wait(A1) is waits
    moved = msgspec.structs.replace(member("n1", keys), address="before.example:7411")
    scene.lists.forget(set())
    scene.lists.start([ModelCachePeersSpec(digests=(A1,), members=(moved, member("n2")))])
    assert scene.lists.wait(A1), "nobody reaches it"


async def test_nobody_waits_for_a_controller_that_is_away() -> None:
    """When the time is over there is news, and the fetch begins alone."""
    scene = Lists(hold_s=0.05)
    assert scene.lists.wait(A1)
    await until(lambda: scene.news == 1, "it knows")
    assert not scene.lists.wait(A1)
    await asyncio.sleep(0)
    assert not scene.lists.wait(A1)
    assert scene.names() == []


async def test_what_was_kept_holds_until_the_api_server_has_answered() -> None:
    """An agent that starts while it is away goes on with the peers that it knew."""
    scene = Lists()
    scene.kube.fail_next("list", KubeUnavailable("away"), resource=MODEL_CACHE_PEERS)
    scene.lists.start([ModelCachePeersSpec(digests=(A1,), members=(member("n1"), member("n2")))])
    assert not scene.lists.wait(A1)
    async with running(scene.lists.run()):
        assert scene.names() == ["n1", "n2"]
        scene.kube.put(MODEL_CACHE_PEERS, written("one", member("n1"), member("n3")))
        await until(lambda: scene.names() == ["n1", "n3"], "it knows")


async def test_what_was_kept_goes_when_the_api_server_knows_nothing_of_it() -> None:
    """This node is on no list any more."""
    scene = Lists()
    scene.lists.start([ModelCachePeersSpec(digests=(A1,), members=(member("n1"), member("n2")))])
    async with running(scene.lists.run()):
        await until(lambda: scene.names() == [], "it is told")
