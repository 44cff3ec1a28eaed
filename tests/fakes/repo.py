"""A model repository as the Hugging Face Hub keeps it: commits, branches, tags, LFS and small files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.content import Content

LFS_SUFFIXES = (".safetensors", ".bin", ".onnx", ".pt", ".model")
LFS_SIZE_BYTES = 10 * 2**20
"""The Hub takes no larger file without LFS."""


@dataclass(frozen=True, kw_only=True)
class RepoFile:
    """One file of one commit. `sha256` is empty for files that are not in LFS."""

    path: str
    content: Content
    blob_id: str
    sha256: str = ""
    pointer_bytes: int = 0

    @property
    def etag(self) -> str:
        """What the Hub shows for it."""
        return f'"{self.sha256 or self.blob_id}"'

    def entry(self) -> dict[str, Any]:
        """As the tree lists it."""
        entry: dict[str, Any] = {
            "type": "file",
            "path": self.path,
            "oid": self.blob_id,
            "size": self.content.size_bytes,
        }
        if self.sha256:
            lfs = {"oid": self.sha256, "size": self.content.size_bytes, "pointerSize": self.pointer_bytes}
            entry["lfs"] = lfs
        return entry

    def sibling(self) -> dict[str, Any]:
        """As the model's description lists it with `blobs`."""
        sibling = {"rfilename": self.path, "size": self.content.size_bytes, "blobId": self.blob_id}
        if not self.sha256:
            return sibling
        lfs = {"sha256": self.sha256, "size": self.content.size_bytes, "pointerSize": self.pointer_bytes}
        return {**sibling, "lfs": lfs}


@dataclass(kw_only=True)
class Repo:
    """All commits of one repository. `readers` are the tokens that a private or gated one lets in."""

    repo_id: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, RepoFile]] = field(default_factory=dict)

    def commit(
        self, files: Mapping[str, bytes | Path], *, branch: str = "main", removed: tuple[str, ...] = (), tag: str = ""
    ) -> str:
        """Add files to those of the branch (or take some away); the new commit's id. Equal histories have equal ids."""
        parent = self.branches.get(branch, "")
        tree = dict(self.commits.get(parent, {}))
        for path in removed:
            del tree[path]
        tree |= {path: make_file(path, source) for path, source in files.items()}
        listing = "".join(f"{path} {file.blob_id}\n" for path, file in sorted(tree.items()))
        commit = hashlib.sha1(f"{self.repo_id} {branch} {parent}\n{listing}".encode()).hexdigest()
        self.commits[commit] = dict(sorted(tree.items()))
        self.branches[branch] = commit
        if tag:
            self.tags[tag] = commit
        return commit

    def find_commit(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit's own id stands for."""
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )

    def split_revision(self, rest: str) -> tuple[str, str]:
        """`<revision>/<path>` into both; a revision may hold slashes."""
        known = [each for each in (*self.branches, *self.tags, *self.commits) if f"{rest}/".startswith(f"{each}/")]
        revision = max(known, key=len, default=rest.partition("/")[0])
        return revision, rest.removeprefix(revision).lstrip("/")


def make_file(path: str, source: bytes | Path) -> RepoFile:
    """The file with the names that git and LFS give to its bytes."""
    content = Content(source)
    if not path.endswith(LFS_SUFFIXES) and content.size_bytes < LFS_SIZE_BYTES:
        return RepoFile(path=path, content=content, blob_id=git_blob_id(content.read(0, content.size_bytes)))
    sha256 = content.sha256()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {content.size_bytes}\n".encode()
    return RepoFile(path=path, content=content, blob_id=git_blob_id(pointer), sha256=sha256, pointer_bytes=len(pointer))


def git_blob_id(data: bytes) -> str:
    """What `git hash-object` says."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
