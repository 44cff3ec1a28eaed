"""Every kind of source through the real engine: listed, moved by real workers, proved, published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from cacheagent.demo.seaweedfs import S3Server
from cacheagent.model import MIB
from cacheagent.node import open_node
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.transfer.pool import TransferConfig
from tests.fakes.hub import Hub
from tests.fakes.origin import Origin
from tests.fakes.s3 import client_for, new_bucket

FILES = {
    "config.json": b'{"hidden_size": 8}',
    "empty.txt": b"",
    "large.bin": bytes(range(251)) * (36 * MIB // 251),
    "middle.bin": bytes(range(241)) * (3 * MIB // 241),
    "a folder/ünïcödé 日本語+&%.txt": b"a name that some URL rule knows",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where `FILES` are, and by what the origin's own checksums prove the large and a small one of them."""

    source: SourceSpec
    large_by: str
    small_by: str


def at_seaweedfs(request: pytest.FixtureRequest, tmp_path: Path, stack: ExitStack) -> Place:
    server: S3Server = request.getfixturevalue("seaweedfs")
    (tmp_path / "aws").write_text(
        f"[writer]\naws_access_key_id={server.access_key}\naws_secret_access_key={server.secret_key}\n"
    )
    request.getfixturevalue("monkeypatch").setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    client = client_for(server)
    stack.callback(client.close)
    bucket = new_bucket(client)
    for path, body in FILES.items():
        client.put_object(Bucket=bucket, Key=f"m/{path}", Body=body, ChecksumAlgorithm="CRC64NVME")
    source = SourceSpec(uri=f"s3://{bucket}/m", endpoint=server.endpoint, credential="writer")
    return Place(source=source, large_by="crc64nvme", small_by="crc64nvme")


def at_a_hub(request: pytest.FixtureRequest, tmp_path: Path, stack: ExitStack) -> Place:
    request.getfixturevalue("monkeypatch").setenv("CACHEAGENT_TOKEN_READER", "hf_reader")
    hub = stack.enter_context(Hub())
    hub.create("org/model", private=True, readers=("hf_reader",)).commit(FILES)
    source = SourceSpec(uri="hf://org/model", endpoint=hub.url, credential="reader")
    return Place(source=source, large_by="sha256", small_by="git-sha1")


def at_a_web_server(request: pytest.FixtureRequest, tmp_path: Path, stack: ExitStack) -> Place:
    request.getfixturevalue("monkeypatch").setenv("CACHEAGENT_TOKEN_READER", "reader")
    origin = stack.enter_context(Origin({f"m/{path}": body for path, body in FILES.items()}, token="reader"))
    origin.add_sums("m")
    return Place(source=SourceSpec(uri=f"{origin.url}/m/", credential="reader"), large_by="sha256", small_by="sha256")


def at_a_mount(request: pytest.FixtureRequest, tmp_path: Path, stack: ExitStack) -> Place:
    root = tmp_path / "a tree"
    for path, body in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(body)
    return Place(source=SourceSpec(uri=f"file://{quote(str(root))}"), large_by="", small_by="")


@pytest.fixture(
    params=[
        pytest.param(at_seaweedfs, marks=pytest.mark.s3_real, id="s3"),
        pytest.param(at_a_hub, id="hf"),
        pytest.param(at_a_web_server, id="https"),
        pytest.param(at_a_mount, id="posix"),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    fill: Callable[[pytest.FixtureRequest, Path, ExitStack], Place] = request.param
    with ExitStack() as stack:
        yield fill(request, tmp_path, stack)


@pytest.mark.asyncio
async def test_a_tree_arrives_whole_and_proved(place: Place, tmp_path: Path) -> None:
    """Every file is there byte for byte, proved by the checksums that its origin has; asking again is a hit."""
    spec = ModelSpec(name="model", source=place.source, kind="tree")
    async with open_node(tmp_path / "cache", transfer=TransferConfig(workers=2)) as node:
        record = await node.flights.ensure(spec)
        root = node.store.path(record.digest) / "files"
        found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        assert found == FILES
        assert (
            record.manifest.source_kind
            == {"s3": "s3", "hf": "hf", "http": "https", "file": "posix"}[place.source.uri.partition(":")[0]]
        )
        for path, by in (
            ("large.bin", place.large_by),
            ("middle.bin", place.large_by),
            ("config.json", place.small_by),
        ):
            assert not by or by in record.hashes[path].verified_by, path
        assert (await node.flights.ensure(spec)).digest == record.digest
