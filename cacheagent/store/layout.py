"""Names and places on disk. What comes from outside is judged here before it becomes a path; nothing else joins any."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from cacheagent.errors import UnsafeContent, UsageError

LAYOUT_VERSION: Final = 1
"""Goes up with every change of what lies where or of a file's format; another version is refused, never migrated."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_VOLUME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""CSI allows 128 bytes; ours, and the kubelet's `csi-<hex>`, need no other characters."""
_REPO: Final = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")


class Layout:
    """Every place below one cache directory, as strings: a publish joins tens of thousands of them."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root)
        self.version = f"{self.root}/VERSION"
        self.boot = f"{self.root}/boot.json"
        self.scrubbed = f"{self.root}/scrubbed.json"
        self.blobs = f"{self.root}/blobs"
        self.models = f"{self.root}/models"
        self.records = f"{self.root}/records"
        self.resolved = f"{self.root}/resolved"
        self.leases = f"{self.root}/leases"
        self.promises = f"{self.root}/promises"
        self.volumes = f"{self.root}/volumes"
        self.incarnation = f"{self.root}/incarnation"
        self.assignment = f"{self.root}/assignment.json"
        self.node_key = f"{self.root}/node.key"
        self.next_node_key = f"{self.root}/node.key.next"
        self.seals = f"{self.root}/seals"
        self.staging = f"{self.root}/staging"
        self.small = f"{self.staging}/small"
        self.small_journal = f"{self.small}/journal"
        self.trees = f"{self.staging}/trees"
        self.trash = f"{self.root}/trash"
        self.quarantine = f"{self.root}/quarantine"

    @property
    def directories(self) -> dict[str, int]:
        """Every directory in the order of making, and its mode: only published trees and mounted
        volumes are for others to look into."""
        private = (
            self.blobs,
            self.records,
            self.resolved,
            self.leases,
            self.promises,
            self.staging,
            self.small,
            self.trees,
            self.trash,
            self.quarantine,
        )
        return {self.models: 0o755, self.volumes: 0o755, **dict.fromkeys(private, 0o700)}

    def model(self, digest: str) -> str:
        """The published tree."""
        return f"{self.models}/{digest_name(digest)}"

    def tree(self, digest: str) -> str:
        """The tree while it is built, where nobody looks."""
        return f"{self.trees}/{digest_name(digest)}"

    def record(self, digest: str) -> str:
        """The record of a published version."""
        return f"{self.records}/{digest_name(digest)}.json"

    def seals_of(self, digest: str) -> str:
        """Who vouches for the pieces of a version that came from other nodes."""
        return f"{self.seals}/{digest_name(digest)}"

    def blob(self, blob: str) -> str:
        """A blob that a record names."""
        return f"{self.blobs}/{_hex_name(blob)}"

    def staged(self, blob: str) -> str:
        """Directory of a partial large blob."""
        return f"{self.staging}/{_hex_name(blob)}"

    def staged_data(self, blob: str) -> str:
        """Its bytes, preallocated."""
        return f"{self.staged(blob)}/data"

    def staged_journal(self, blob: str) -> str:
        """What is claimed of them."""
        return f"{self.staged(blob)}/journal"

    def staged_small(self, blob: str) -> str:
        """A small file on its way."""
        return f"{self.small}/{_hex_name(blob)}"

    def resolution(self, key: str) -> str:
        """Which version a request was last resolved to."""
        return f"{self.resolved}/{_hex_name(key)}.json"

    def lease(self, volume_id: str) -> str:
        """Which version a mounted volume uses. Raises UsageError."""
        return f"{self.leases}/{_volume_name(volume_id)}"

    def promise(self, volume_id: str) -> str:
        """What a volume was promised that has no lease yet. Raises UsageError."""
        return f"{self.promises}/{_volume_name(volume_id)}"

    def volume(self, volume_id: str) -> str:
        """The directory of a volume that is filled later. Raises UsageError."""
        return f"{self.volumes}/{_volume_name(volume_id)}"


def digest_name(digest: str) -> str:
    """`sha256:<hex>` as a file name, without the colon that paths in mount options and PATH-like variables can't have.
    Raises UsageError."""
    if not _DIGEST.fullmatch(digest):
        raise UsageError(f"{digest[:200]!r} is no digest", hint="a digest is sha256: and 64 hex digits")
    return digest.replace(":", "-", 1)


def digest_of(name: str) -> str | None:
    """The digest that a file name stands for; None for a name that is not ours."""
    digest = name.replace("-", ":", 1)
    return digest if _DIGEST.fullmatch(digest) else None


def is_hex_name(name: str) -> bool:
    """Whether it can be a blob's or a request's name."""
    return _HEX.fullmatch(name) is not None


def is_volume_id(name: str) -> bool:
    """Whether it can be a volume's name."""
    return _VOLUME.fullmatch(name) is not None


def _volume_name(volume_id: str) -> str:
    if not _VOLUME.fullmatch(volume_id):
        raise UsageError(
            f"volume id {volume_id[:200]!r} can't be a file name",
            hint="at most 128 letters, digits, '.', '_' and '-', the first a letter or digit",
        )
    return volume_id


def entries(directory: str) -> list[os.DirEntry[str]]:
    """What lies in a directory, listed whole before anything of it is changed."""
    with os.scandir(directory) as found:
        return list(found)


def repo_directory(repo_id: str) -> str:
    """`models--org--name`, the folder of a repository in a Hugging Face cache. Raises UnsafeContent."""
    if not _REPO.fullmatch(repo_id):
        raise UnsafeContent(
            f"repository id {repo_id[:200]!r} can't be a directory of the hf view",
            hint="expected org/name of letters, digits, '.', '_' and '-'",
        )
    return "models--" + repo_id.replace("/", "--")


def _hex_name(name: str) -> str:
    if not _HEX.fullmatch(name):
        raise UsageError(f"{name[:200]!r} can't be a blob's name", hint="64 hex digits")
    return name
