"""What is published, in memory: rebuilt from the records at start, never the truth itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from cacheagent.errors import NotCached
from cacheagent.model import FileHashes, Manifest, TrustDomain, blob_id
from cacheagent.store.record import Record


@dataclass(frozen=True)
class Blob:
    """A file in `blobs/`. `versions`: digests of the records that name it; counted here, stored nowhere."""

    size_bytes: int
    hashes: FileHashes
    versions: set[str] = field(default_factory=set)


class Index:
    """Records and the blobs they name (`sizes`: theirs, in bytes). Not thread-safe: the store's lock is held for every
    change; single look-ups need no lock."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.blobs: dict[str, Blob] = {}
        self.latest_use = 0.0
        self.sizes: dict[str, int] = {}
        self._blobs_of: dict[str, tuple[str, ...]] = {}
        self._blob_sets: dict[str, frozenset[str]] = {}

    def get(self, digest: str) -> Record:
        """The record. Raises NotCached."""
        record = self.records.get(digest)
        if record is None:
            raise NotCached(f"{digest} is not in this cache", hint="`cacheagent ls` shows what is")
        return record

    def blobs_of(self, digest: str) -> tuple[str, ...]:
        """The blob of each file, in the order of the manifest."""
        return self._blobs_of[digest]

    def blob_set(self, digest: str) -> frozenset[str]:
        """The same, each once."""
        return self._blob_sets[digest]

    def add(self, record: Record, blobs: tuple[str, ...]) -> None:
        """A version is published."""
        self._blobs_of[record.digest] = blobs
        self._blob_sets[record.digest] = frozenset(blobs)
        for file, blob in zip(record.manifest.files, blobs, strict=True):
            known = self.blobs.get(blob)
            if known is None:
                known = self.blobs[blob] = Blob(file.size_bytes, record.hashes[file.path])
                self.sizes[blob] = file.size_bytes
            known.versions.add(record.digest)
        self.replace(record)

    def replace(self, record: Record) -> None:
        """Something about a version changed that isn't its contents."""
        self.records[record.digest] = record
        self.latest_use = max(self.latest_use, record.last_used)

    def remove(self, digest: str) -> dict[str, Blob]:
        """A version is gone; returns its blobs, of which those that no version names now are forgotten."""
        del self.records[digest]
        del self._blob_sets[digest]
        blobs = {blob: self.blobs[blob] for blob in self._blobs_of.pop(digest)}
        for blob, known in blobs.items():
            known.versions.discard(digest)
            if not known.versions:
                del self.blobs[blob], self.sizes[blob]
        return blobs

    def next_use(self, now: float) -> float:
        """The time to write down for a use: now, but after every use before it, also when the clock was set back."""
        return max(now, self.latest_use + 1e-6)


def blobs_of_files(manifest: Manifest, domain: TrustDomain) -> tuple[str, ...]:
    """The blob of each file, in the order of the manifest."""
    return tuple(blob_id(domain, file) for file in manifest.files)
