"""What every source must do, whatever its origin. A joining module says how to fill its origin, and inherits the
tests."""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import Protocol

import msgspec
import pytest

from cacheagent.errors import CacheAgentError, OriginForbidden, OriginNotFound, SourceChanged
from cacheagent.location import Location
from cacheagent.model import MIB, RemoteFile
from cacheagent.source.base import Source
from tests.conformance.reading import read_range, read_whole

FILES = {
    "config.json": b'{"hidden_size": 8}',
    "empty.txt": b"",
    "model-00001-of-00001.safetensors": bytes(range(256)) * 4096 * 3,
    "a folder/a name with spaces.txt": b"spaces",
    "ünïcödé/日本語 \N{SLIGHTLY SMILING FACE}.txt": "Größe".encode(),
    "deep/er/and+plus&amp;=100%25#x.bin": b"every character that some URL rule knows",
}
LARGE = {"large.safetensors": bytes(range(251)) * (17 * MIB // 251 + 1)}


class OriginUnderTest(Protocol):
    """How a joining module fills and asks its origin. Calls may block."""

    secrets: tuple[str, ...]
    """What must never be shown: tokens, secret keys, the beginnings of signatures."""

    keeps_old_versions: bool
    """Whether a replaced object can still be read as it was listed."""

    def fill(self, files: dict[str, bytes]) -> None:
        """Make or replace these files, all of them before anybody lists."""

    def source(self) -> Source:
        """As somebody who may read."""

    def stranger(self) -> Source:
        """The same place as somebody who may not read."""

    def nowhere(self) -> Source:
        """A place that does not exist, as somebody who may read."""

    def elsewhere(self) -> Source:
        """The same place in another trust domain."""


@pytest.mark.asyncio
class SourceConformance:
    """Inherited by `Test…` classes whose module defines the fixture `origin`."""

    async def test_a_listing_is_complete_with_relative_paths_and_sizes(self, origin: OriginUnderTest) -> None:
        """Every file is there once, under its own name and size, spaces, Unicode and emptiness included."""
        origin.fill(FILES)
        source = origin.source()
        listing = await source.list()
        await source.close()
        expected = {path: len(body) for path, body in FILES.items()}
        assert {file.path: file.size_bytes for file in listing.files} == expected
        assert len(listing.files) == len(FILES)

    async def test_more_files_than_a_page_holds_are_all_listed(self, origin: OriginUnderTest) -> None:
        """1,200 files come back complete from origins that answer in pages of a thousand."""
        files = {f"data/part {number:04d}.txt": b"%d" % number for number in range(1200)}
        origin.fill(files)
        source = origin.source()
        listing = await source.list()
        await source.close()
        assert sorted(file.path for file in listing.files) == sorted(files)

    async def test_located_files_read_whole_and_by_range(self, origin: OriginUnderTest) -> None:
        """A plain reader gets exactly the bytes that were put there, from locations that promise what they hold."""
        origin.fill(FILES | LARGE)
        source = origin.source()
        files = await source.describe((await source.list()).files)
        locations = await source.locate(files)
        await source.close()
        for file, location in zip(files, locations, strict=True):
            body = (FILES | LARGE)[file.path]
            whole, _ = await asyncio.to_thread(read_whole, location)
            assert whole == body, file.path
            if len(body) > 3:
                offset, length = len(body) // 3, max(1, len(body) // 2)
                part = await asyncio.to_thread(read_range, location, offset, length)
                assert part == body[offset : offset + length], file.path

    async def test_describing_twice_says_the_same(self, origin: OriginUnderTest) -> None:
        """describe() adds what proves a file and keeps what pins it, however often it is asked."""
        origin.fill(FILES | LARGE)
        source = origin.source()
        listed = (await source.list()).files
        once = await source.describe(listed)
        twice = await source.describe(once)
        await source.close()
        assert once == twice
        assert [(file.path, file.size_bytes, file.identity) for file in once] == [
            (file.path, file.size_bytes, file.identity) for file in listed
        ]

    async def test_small_files_are_read_whole_up_to_a_limit(self, origin: OriginUnderTest) -> None:
        """read() gives an index's bytes, and refuses one that is longer than the caller allows."""
        origin.fill(FILES)
        source = origin.source()
        file = _named("config.json", (await source.list()).files)
        assert await source.read(file, 1000) == FILES["config.json"]
        with pytest.raises(ValueError, match=r"config\.json has 18 bytes, more than 17"):
            await source.read(file, 17)
        await source.close()

    @pytest.mark.parametrize("path", ["config.json", "large.safetensors"])
    async def test_a_replaced_object_is_never_taken_for_the_listed_one(
        self, origin: OriginUnderTest, path: str
    ) -> None:
        """Other bytes of the same length under the same name are an error, or not seen at all."""
        before = FILES | LARGE
        origin.fill(before)
        source = origin.source()
        file = _named(path, (await source.list()).files)
        assert await _read_from_location(source, file) == before[path]  # the positive control

        origin.fill({path: before[path][::-1]})
        if origin.keeps_old_versions:
            assert await _read_from_location(source, file) == before[path]
        else:
            with pytest.raises(SourceChanged):
                await _read_from_location(source, file)
            if path == "config.json":
                with pytest.raises(SourceChanged):
                    await source.read(file, 1000)
        await source.close()

    async def test_identity_lasts_as_long_as_the_bytes(self, origin: OriginUnderTest) -> None:
        """Two listings agree about a file that stayed, and differ about one that was replaced by one of equal
        length."""
        origin.fill(FILES)
        source = origin.source()
        first, again = (await source.list()).files, (await source.list()).files
        assert first == again
        origin.fill({"config.json": FILES["config.json"][::-1]})
        later = (await source.list()).files
        await source.close()
        assert _named("config.json", later).identity != _named("config.json", first).identity
        assert _named("empty.txt", later).identity == _named("empty.txt", first).identity

    async def test_a_place_that_does_not_exist_is_not_found(self, origin: OriginUnderTest) -> None:
        """The error says that it is not there, and the same question about a place that is there is answered."""
        origin.fill(FILES)
        permitted, nowhere = origin.source(), origin.nowhere()
        with pytest.raises(OriginNotFound) as caught:
            await nowhere.list()
        assert caught.value.hint
        assert (await permitted.list()).files
        await permitted.close()
        await nowhere.close()

    async def test_a_stranger_is_refused_where_a_reader_is_served(self, origin: OriginUnderTest) -> None:
        """Without the right credential there is no listing; the message says with which one it was tried, by name."""
        origin.fill(FILES)
        permitted, stranger = origin.source(), origin.stranger()
        assert (await permitted.list()).files
        with pytest.raises(OriginForbidden) as caught:
            await stranger.list()
        assert caught.value.hint
        await permitted.close()
        await stranger.close()

    async def test_calls_may_overlap(self, origin: OriginUnderTest) -> None:
        """Eight listings and locations at once give eight times the same."""
        origin.fill(FILES)
        source = origin.source()
        files = (await source.list()).files

        async def list_and_locate() -> tuple[tuple[RemoteFile, ...], int]:
            listed, located = await asyncio.gather(source.list(), source.locate(files))
            return listed.files, len(located)

        answers = await asyncio.gather(*(list_and_locate() for _ in range(8)))
        await source.close()
        assert answers == [(files, len(files))] * 8

    async def test_a_cancelled_call_leaves_the_source_usable(self, origin: OriginUnderTest) -> None:
        """Cancelled at its beginning or a little later, a call ends as cancelled, leaves no task behind, and the next
        is answered."""
        origin.fill(FILES)
        source = origin.source()
        files = (await source.list()).files
        others = asyncio.all_tasks()
        for turns in (0, 1, 3, 10):
            for call in (source.list, lambda: source.locate(files), lambda: source.read(files[0], 2**30)):
                task = asyncio.ensure_future(call())
                for _ in range(turns):
                    await asyncio.sleep(0)
                if task.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await task
        assert asyncio.all_tasks() == others
        assert (await source.list()).files == files
        await source.close()

    async def test_closing_twice_is_fine(self, origin: OriginUnderTest) -> None:
        """close() may be called again, and before anything was asked."""
        origin.fill(FILES)
        source = origin.source()
        await source.list()
        await source.close()
        await source.close()
        await origin.source().close()

    async def test_trust_domains_differ_by_credential_or_endpoint(self, origin: OriginUnderTest) -> None:
        """The same place asked with another credential, or at another endpoint, is another trust domain."""
        one, same, other = origin.source(), origin.source(), origin.elsewhere()
        assert one.trust_domain == same.trust_domain
        assert one.trust_domain != other.trust_domain
        for source in (one, same, other):
            await source.close()

    async def test_no_secret_is_shown(self, origin: OriginUnderTest, caplog: pytest.LogCaptureFixture) -> None:
        """Not in a listing, a repr, an error with its causes, or a log at debug level; the locations do hold what
        they need."""
        caplog.set_level(logging.DEBUG)
        origin.fill(FILES)
        source = origin.source()
        listing = await source.list()
        described = await source.describe(listing.files)
        located = await source.locate(described)
        stranger, nowhere = origin.stranger(), origin.nowhere()
        shown = [repr(source), repr(stranger), repr(listing), repr(located), str(located), repr(source.trust_domain)]
        shown.append(msgspec.json.encode((listing, described, source.trust_domain)).decode())
        for call in (stranger.list, nowhere.list):
            with pytest.raises(CacheAgentError) as caught:
                await call()
            shown += [str(caught.value), repr(caught.value), "".join(traceback.format_exception(caught.value))]
        for each in (source, stranger, nowhere):
            await each.close()
        everything = "\n".join([*shown, caplog.text])
        for secret in origin.secrets:
            assert secret not in everything
        if origin.secrets:
            assert any(secret in _held(location) for secret in origin.secrets for location in located)


def _named(path: str, files: tuple[RemoteFile, ...]) -> RemoteFile:
    return next(file for file in files if file.path == path)


async def _read_from_location(source: Source, file: RemoteFile) -> bytes:
    """As the engine does it: describe, locate, read in ranges."""
    (described,) = await source.describe([file])
    (location,) = await source.locate([described])
    half = file.size_bytes // 2
    first = await asyncio.to_thread(read_range, location, 0, half)
    return first + await asyncio.to_thread(read_range, location, half, file.size_bytes - half)


def _held(location: Location) -> str:
    return msgspec.json.encode(location).decode()
