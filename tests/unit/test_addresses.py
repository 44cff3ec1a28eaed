"""Addresses that on-demand URIs don't reach: by number, by name, by redirect; in listings and in workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cacheagent.addresses import LOCAL_NETWORKS, is_refused
from cacheagent.errors import PolicyRefused
from cacheagent.kube.uris import refused_address
from cacheagent.location import HttpLocation
from cacheagent.source.https import HttpsSource
from cacheagent.source.web import Caller, Web
from cacheagent.spec import SourceSpec
from cacheagent.transfer.connection import Connection
from cacheagent.transfer.failure import OrderFailed
from cacheagent.transfer.request import make_request
from cacheagent.transfer.running import Running
from tests.fakes.faults import Redirect
from tests.fakes.origin import Origin

ELSEWHERE = ("127.0.0.2/32",)


@pytest.fixture
def server() -> Iterator[Origin]:
    """A server that may be asked."""
    with Origin({"m/a.bin": b"aaaa"}) as origin:
        origin.add_sums("m")
        yield origin


@pytest.fixture
def inner() -> Iterator[Origin]:
    """A service that is nobody's business."""
    with Origin({"secret": b"secret"}, host="127.0.0.2") as origin:
        yield origin


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "169.254.169.254",
        "::1",
        "[::1]",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "100.100.100.200",
        "0.0.0.0",
    ],
)
def test_local_addresses_are_refused_in_every_spelling(address: str) -> None:
    """As the webhook's own rule says; a public one is not."""
    assert is_refused(address, LOCAL_NETWORKS)
    assert refused_address(address)
    for public in ("8.8.8.8", "2001:4860:4860::8888", "example.org"):
        assert not is_refused(public, LOCAL_NETWORKS)
    assert is_refused("10.96.0.1", ("10.96.0.0/16",))
    assert not is_refused(address, ())


@pytest.mark.asyncio
async def test_a_redirect_to_a_refused_address_is_not_followed(server: Origin, inner: Origin) -> None:
    """By number and by name; without the rule it is."""
    for target in (inner.url, inner.url.replace("127.0.0.2", "localhost")):
        server.inject(Redirect(f"{target}/secret"), path="m/a.bin")
        refused = ELSEWHERE if "127" in target else LOCAL_NETWORKS[1:2]
        start = server.url if "127" in target else ""
        async with Web(refused_networks=refused) as client:
            with pytest.raises(PolicyRefused, match="where nothing may be fetched from"):
                await client.ask("GET", f"{start or target}/m/a.bin", Caller(), limit_bytes=100)
    assert inner.requests == []
    server.inject(Redirect(f"{inner.url}/secret"), path="m/a.bin")
    async with Web() as client:
        assert (await client.ask("GET", f"{server.url}/m/a.bin", Caller(), limit_bytes=100)).body == b"secret"


@pytest.mark.asyncio
async def test_a_source_hands_the_rule_to_the_workers(server: Origin, inner: Origin) -> None:
    """Names may mean another address a moment later: the connection itself is judged."""
    source = HttpsSource(SourceSpec(uri=f"{server.url}/m/", refused_networks=ELSEWHERE))
    try:
        (location,) = await source.locate((await source.list()).files)
    finally:
        await source.close()
    assert isinstance(location, HttpLocation)
    assert location.refused_networks == ELSEWHERE
    Connection(make_request(location).endpoint, 5.0, Running(1)).close()
    for host in ("127.0.0.2", "localhost"):
        networks = ELSEWHERE if host != "localhost" else LOCAL_NETWORKS
        url = f"http://{host}:{inner.url.rpartition(':')[2]}/secret"
        request = make_request(HttpLocation(url=url, refused_networks=networks))
        with pytest.raises(OrderFailed, match="where nothing may be fetched from"):
            Connection(request.endpoint, 5.0, Running(1))
    assert inner.requests == []
