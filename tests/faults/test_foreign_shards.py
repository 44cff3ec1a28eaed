"""Somebody knows the checksum of another team's shard that this node has: naming it in a list of one's own gives
nothing, whatever stands behind the list. Bytes are had by fetching them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cacheagent.errors import CacheAgentError, ChecksumMismatch, OriginForbidden, OriginNotFound
from cacheagent.model import MIB
from cacheagent.spec import ModelSpec, SourceSpec
from tests.fakes.origin import Origin
from tests.fakes.transfer import until
from tests.faults.scene import (
    SHARD,
    SHARD_BYTES,
    SMALL,
    Cache,
    Listing,
    assert_published,
    ensure,
    ensure_fails,
    look,
    put_index,
    put_model,
    small_tree,
    web_spec,
)

SECRET = small_tree(1)
OTHER = small_tree(2)[SHARD]

pytestmark = pytest.mark.asyncio


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    """The team's server: who reads there shows its token."""
    monkeypatch.setenv("CACHEAGENT_TOKEN_TEAM", "the-teams-token")
    with Origin(token="the-teams-token") as server:
        put_model(server, "m", SECRET)
        yield server


def team_spec(team: Origin, credential: str = "team") -> ModelSpec:
    return ModelSpec(name="m", kind="tree", source=SourceSpec(uri=f"{team.url}/m/", credential=credential))


def name_the_shard(thief: Origin, team: Origin, listing: Listing) -> None:
    """Path, size and SHA-256 as the team has them."""
    known = {path: team.files[f"m/{path}"] for path in SECRET}
    if listing == "sums":
        thief.put("m/SHA256SUMS", "".join(f"{each.sha256()}  {path}\n" for path, each in known.items()).encode())
    else:
        entries = [{"path": path, "size": each.size_bytes, "sha256": each.sha256()} for path, each in known.items()]
        put_index(thief, "m", entries)


@dataclass(frozen=True)
class TheTeams:
    """The team's published version as it is on disk: how many names its shard has says who else links it."""

    root: Path
    digest: str

    def names(self) -> int:
        return os.stat(self.root / "models" / self.digest.replace(":", "-", 1) / "files" / SHARD).st_nlink

    def assert_untouched(self, names: int) -> None:
        assert_published(self.root, {self.digest: SECRET})
        assert self.names() == names
        assert look(self.root).staged == {}


@pytest.mark.parametrize("listing", ["sums", "index"])
@pytest.mark.parametrize(
    ("behind", "error", "says", "next_step"),
    [
        (OTHER, ChecksumMismatch, r"shard\.bin.*sha256", "nothing of the file was kept"),
        (None, OriginNotFound, r"shard\.bin.*404", ""),
    ],
    ids=["other bytes", "no file"],
)
async def test_a_list_that_names_somebody_elses_shard_gets_nothing(
    cache: Cache,
    origin: Origin,
    team: Origin,
    listing: Listing,
    behind: bytes | None,
    error: type[CacheAgentError],
    says: str,
    next_step: str,
) -> None:
    """No byte, no link, no tree. The control: whoever really has the same bytes gets them, over the wire."""
    teams = TheTeams(cache.root, (await cache.pull(team_spec(team))).digest)
    before = teams.names()
    name_the_shard(origin, team, listing)
    for path, content in SMALL.items():
        origin.put(f"m/{path}", content)
    if behind is not None:
        origin.put(f"m/{SHARD}", behind)
    await cache.fail(web_spec(origin, "m"), error, says, next_step)
    teams.assert_untouched(before)

    origin.put(f"m/{SHARD}", SECRET[SHARD])
    sent = origin.body_bytes_sent(f"m/{SHARD}")
    got = await cache.recover(web_spec(origin, "m"), SECRET)
    origin.wait_until_idle()
    assert origin.body_bytes_sent(f"m/{SHARD}") - sent == SHARD_BYTES
    assert got.bytes_linked == 0
    assert_published(cache.root, {teams.digest: SECRET, got.digest: SECRET})


@pytest.mark.parametrize("credential", ["", "wrong"])
async def test_the_teams_own_address_without_its_token_gets_nothing(
    cache: Cache, team: Origin, credential: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the very version is on this node; with the token it is a hit that asks for no byte."""
    monkeypatch.setenv("CACHEAGENT_TOKEN_WRONG", "somebody-elses-token")
    teams = TheTeams(cache.root, (await cache.pull(team_spec(team))).digest)
    before = teams.names()
    await cache.fail(team_spec(team, credential), OriginForbidden, rf"{team.url}.* 40[13]", "name one that may read it")
    teams.assert_untouched(before)
    sent = team.body_bytes_sent(f"m/{SHARD}")
    assert (await cache.pull(team_spec(team))).digest == teams.digest
    assert team.body_bytes_sent(f"m/{SHARD}") == sent


async def test_a_shard_that_is_on_its_way_is_not_joined_either(cache: Cache, origin: Origin, team: Origin) -> None:
    """The team's download goes on and is not shared: the thief waits for nothing, and gets its own server's bytes."""
    name_the_shard(origin, team, "sums")
    for path, content in {**SMALL, SHARD: OTHER}.items():
        origin.put(f"m/{path}", content)
    team.pace.bytes_per_s = 10e6
    async with cache.node() as node:
        pulling = asyncio.create_task(ensure(node, team_spec(team)))
        await until(lambda: team.body_bytes_sent(f"m/{SHARD}") > MIB, "the team's first bytes")
        await ensure_fails(node, web_spec(origin, "m"), ChecksumMismatch, r"shard\.bin.*sha256", "nothing of the file")
        assert not pulling.done()
        record = await pulling
    assert origin.body_bytes_sent(f"m/{SHARD}") > 0
    TheTeams(cache.root, record.digest).assert_untouched(2)
