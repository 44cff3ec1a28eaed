"""The contract between a source and the engine: list, describe, locate, read.

A source says *what* there is and *where* its bytes can be had; it moves no weight bytes itself. One conformance suite
(`tests/conformance/`) runs on every implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cacheagent.location import Location
from cacheagent.model import RemoteFile, TrustDomain, Value


class Listing(Value):
    """What a source holds now. `revision` is the immutable one that a branch or tag stood for (a commit), if the
    source has any; `repo_id` is `org/name` where the source knows it.
    """

    files: tuple[RemoteFile, ...]
    revision: str = ""
    repo_id: str = ""


class Source(Protocol):
    """One origin of one model. Safe for concurrent use from one event loop; blocking clients run in threads inside.

    Cancelling any call leaves nothing behind. Errors by cause: `OriginNotFound`, `OriginForbidden`, `SourceChanged`,
    `OriginUnavailable` (after the source's own few retries), `UsageError` for a URI that makes no sense.
    """

    kind: str
    """`s3`, `hf`, `https`, `posix` (or `simulated`): the metrics label."""

    trust_domain: TrustDomain

    async def list(self) -> Listing:
        """Everything under the URI: paths relative to it, sizes, identities; checksums only where the listing is free
        of further requests. Paths are as the origin has them (not yet judged).
        """

    async def describe(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        """The same files with everything that pins and proves them (one request per file that is fetched in ranges, a
        few more for a composite checksum; smaller ones may stay as they are if their answers bring the checksum).
        Raises SourceChanged if one is not as listed; what no checksum proves is asked about once more after its last
        byte.
        """

    async def read(self, file: RemoteFile, limit_bytes: int) -> bytes:
        """The whole of one small file (an index, a config), pinned to its identity. ValueError above the limit."""

    async def locate(self, files: Sequence[RemoteFile]) -> Sequence[Location]:
        """Where workers get the bytes of each file, fresh: signed URLs are valid for at least an hour."""

    async def close(self) -> None:
        """Let go of connections. May be called twice."""
