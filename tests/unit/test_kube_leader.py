"""Leadership: at most one believes it at any moment, and somebody does as long as anybody can."""

from __future__ import annotations

import asyncio
import time

import pytest

from cacheagent.kube.api import LEASES, KubeUnavailable, Object
from cacheagent.kube.leader import Leader, Times
from tests.fakes.kube import FakeKube
from tests.fakes.running import running, until

QUICK = Times(lease_s=1.0, renew_s=0.6, retry_s=0.05)
"""A lease counts in whole seconds."""


def leader_of(fake: FakeKube, identity: str, told: list[bool] | None = None, times: Times = QUICK) -> Leader:
    note = None if told is None else told.append
    return Leader(fake, namespace="ours", name="controller", identity=identity, on_change=note, times=times)


def spec(fake: FakeKube) -> Object:
    lease = fake.peek(LEASES, "controller", namespace="ours")
    assert lease is not None
    found: Object = lease["spec"]
    return found


@pytest.mark.asyncio
async def test_the_first_leads_and_renews() -> None:
    """It makes the lease, says so once, and keeps it."""
    fake, told = FakeKube(), list[bool]()
    leader = leader_of(fake, "one", told)
    assert not leader.is_leader()
    async with running(leader.run()):
        await until(leader.is_leader, "it leads")
        assert spec(fake)["holderIdentity"] == leader.holder == "one"
        assert spec(fake)["leaseTransitions"] == 0
        first = spec(fake)["renewTime"]
        await until(lambda: spec(fake)["renewTime"] != first, "it renews")
        assert spec(fake)["acquireTime"] == first
        assert told == [True]
    assert told == [True, False]


@pytest.mark.asyncio
async def test_never_two() -> None:
    """Of three that try all the time, one leads; when it crashes, another does after the lease's end."""
    fake = FakeKube()
    leaders = {name: leader_of(fake, name) for name in ("one", "two", "three")}
    tasks = {name: asyncio.create_task(leader.run()) for name, leader in leaders.items()}
    for _ in range(2):
        await until(lambda: any(each.is_leader() for each in leaders.values()), "somebody leads")
        deadline = time.monotonic() + 0.8
        while time.monotonic() < deadline:
            assert sum(each.is_leader() for each in leaders.values()) <= 1
            await asyncio.sleep(0.005)
        await until(lambda: any(each.is_leader() for each in leaders.values()), "somebody leads still")
        (name,) = [name for name, each in leaders.items() if each.is_leader()]
        fake.fail_next("replace", KubeUnavailable("crashed"), times=1)  # it can't give the lease back
        tasks.pop(name).cancel()
        crashed_at = time.monotonic()
        del leaders[name]
        await until(lambda: any(each.is_leader() for each in leaders.values()), "another leads")
        assert time.monotonic() - crashed_at > QUICK.renew_s - 2 * QUICK.retry_s
    assert spec(fake)["leaseTransitions"] == 2
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.asyncio
async def test_a_clean_stop_hands_over_at_once() -> None:
    """The lease is given back, so nobody waits for its end."""
    fake = FakeKube()
    long = Times(lease_s=3600, renew_s=2400, retry_s=0.05)
    one, two = leader_of(fake, "one", times=long), leader_of(fake, "two", times=long)
    first = asyncio.create_task(one.run())
    await until(one.is_leader, "the first leads")
    async with running(two.run()):
        await until(lambda: two.holder == "one", "the second knows who leads")
        assert not two.is_leader()
        first.cancel()
        await until(two.is_leader, "the second leads")
        assert not one.is_leader()


@pytest.mark.asyncio
async def test_without_a_server_it_stops_believing_by_its_own_clock() -> None:
    """Before anybody else could take the lease; back again it goes on."""
    fake, told = FakeKube(), list[bool]()
    leader = leader_of(fake, "one", told)
    async with running(leader.run()):
        await until(leader.is_leader, "it leads")
        fake.set_down(True)
        begin = time.monotonic()
        await until(lambda: not leader.is_leader(), "it stops")
        assert time.monotonic() - begin <= QUICK.lease_s
        await until(lambda: told == [True, False], "it says so")
        fake.set_down(False)
        await until(leader.is_leader, "it leads again")


@pytest.mark.asyncio
async def test_a_server_that_does_not_answer_counts_as_none() -> None:
    """A hung request does not prolong the belief."""

    class Hung(FakeKube):
        hangs = False

        async def replace(self, *args: object, **options: object) -> Object:
            if self.hangs:
                await asyncio.Event().wait()
            return await super().replace(*args, **options)  # type: ignore[arg-type]

    fake = Hung()
    leader = leader_of(fake, "one")
    async with running(leader.run()):
        await until(leader.is_leader, "it leads")
        fake.hangs = True
        begin = time.monotonic()
        await until(lambda: not leader.is_leader(), "it stops")
        assert time.monotonic() - begin <= QUICK.lease_s
        fake.hangs = False
        await until(leader.is_leader, "it leads again")


@pytest.mark.asyncio
async def test_somebody_takes_the_lease_away() -> None:
    """An administrator's hand, or another's clock: it believes the lease and not itself."""
    fake = FakeKube()
    leader = leader_of(fake, "one")
    async with running(leader.run()):
        await until(leader.is_leader, "it leads")
        taken = {**spec(fake), "holderIdentity": "other", "leaseDurationSeconds": 3600}
        fake.put(LEASES, {"metadata": {"name": "controller", "namespace": "ours"}, "spec": taken})
        await until(lambda: not leader.is_leader(), "it stops")
        await until(lambda: leader.holder == "other", "it knows who leads")
        fake.remove(LEASES, "controller", namespace="ours")
        await until(leader.is_leader, "without a lease it makes one")
