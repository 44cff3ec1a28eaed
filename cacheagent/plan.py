"""Plan: which blobs are here already, which must travel, in which order. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cacheagent.model import SMALL_FILE_BYTES, FileHashes, Manifest, RemoteFile, TrustDomain, blob_id

Known = Callable[[str], FileHashes | None]
"""Hashes of a blob that this node holds, verified."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model's blobs by id. `linked` are here; `small` and `large` must be fetched, in this order, each blob once
    even where several paths share it.
    """

    blobs: dict[str, RemoteFile]
    linked: dict[str, FileHashes]
    small: tuple[str, ...]
    large: tuple[str, ...]

    @property
    def linked_bytes(self) -> int:
        """Bytes of the model that need not travel."""
        return sum(self.blobs[blob].size_bytes for blob in self.linked)

    def renewed(self, known: Known) -> Plan:
        """The same model, by what is here now."""
        return _plan(self.blobs, known)

    def sizes(self) -> dict[str, int]:
        """Blob id to size in bytes, of everything: what a reservation wants to know."""
        return {blob: file.size_bytes for blob, file in self.blobs.items()}


def make_plan(manifest: Manifest, domain: TrustDomain, known: Known) -> Plan:
    """Small files (configs, tokenizers) go first: they finish at once and an engine reads them first; large ones follow
    in path order, which is the order engines load shards in.
    """
    return _plan({blob_id(domain, file): file for file in manifest.files}, known)


def _plan(blobs: dict[str, RemoteFile], known: Known) -> Plan:
    linked = {blob: hashes for blob in blobs if (hashes := known(blob)) is not None}
    missing = [blob for blob in blobs if blob not in linked]
    return Plan(
        blobs=blobs,
        linked=linked,
        small=tuple(blob for blob in missing if blobs[blob].size_bytes < SMALL_FILE_BYTES),
        large=tuple(blob for blob in missing if blobs[blob].size_bytes >= SMALL_FILE_BYTES),
    )
