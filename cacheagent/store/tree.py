"""A published tree: the views of one version, every file a hard link to its blob."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Final

from cacheagent.model import Manifest
from cacheagent.select import check_paths
from cacheagent.store.durable import sync_all
from cacheagent.store.layout import Layout, repo_directory

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

READ_ONLY: Final = 0o555


def check_tree(manifest: Manifest) -> None:
    """Raise UnsafeContent for paths or a repository id that must not reach the disk. `resolve` has judged the paths
    once; manifests also come by other ways, and this is the last door."""
    check_paths(file.path for file in manifest.files)
    if manifest.repo_id:
        repo_directory(manifest.repo_id)


def build_tree(layout: Layout, manifest: Manifest, places: Iterable[str]) -> None:
    """Make the tree where nobody looks, durable, all but its top directory read-only. `places`: where the blob of each
    file of the manifest is now, in its order. Raises OSError; FileExistsError if an earlier try left something."""
    top = layout.tree(manifest.digest)
    views = _views(manifest)
    made = list(_directories((f"{top}/{view}{file.path}" for view in views for file in manifest.files), layout.trees))
    for directory in made:
        os.mkdir(directory, 0o755)
    for file, source in zip(manifest.files, places, strict=True):
        for view in views:
            link_file(source, f"{top}/{view}{file.path}")
    if manifest.repo_id:
        made.append(_write_ref(top, manifest))
    for directory in made[1:]:  # the first is the top
        os.chmod(directory, READ_ONLY)
    sync_all(made, layout.root)


def commit_of(manifest: Manifest) -> str:
    """The commit under which the hf view shows the files: the Hub's own, or the digest's first 40 digits, which looks
    like one to every client."""
    revision = manifest.revision
    return revision if _COMMIT.fullmatch(revision) else manifest.digest.removeprefix("sha256:")[:40]


def _views(manifest: Manifest) -> list[str]:
    """The prefixes inside the tree under which every file appears."""
    if not manifest.repo_id:
        return ["files/"]
    return ["files/", f"hf/{repo_directory(manifest.repo_id)}/snapshots/{commit_of(manifest)}/"]


def _directories(paths: Iterable[str], base: str) -> Iterator[str]:
    """Every directory below `base` that the paths need, parents first."""
    seen = {base}
    for path in paths:
        missing = []
        parent = path.rpartition("/")[0]
        while parent not in seen:
            seen.add(parent)
            missing.append(parent)
            parent = parent.rpartition("/")[0]
        yield from reversed(missing)


def link_file(source: str, target: str) -> None:
    """One more name for a published file. Raises OSError."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        # ext4 takes 65,000 names for one file, and a data set may hold more equal (mostly empty) ones.
        shutil.copyfile(source, target)
        os.chmod(target, 0o444)


def _write_ref(top: str, manifest: Manifest) -> str:
    """`refs/main` tells clients that ask for no revision which snapshot it is. Only that name: the tree depends on the
    digest alone, not on which branch somebody asked for."""
    refs = f"{top}/hf/{repo_directory(manifest.repo_id)}/refs"
    os.mkdir(refs, 0o755)
    fd = os.open(f"{refs}/main", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        os.write(fd, commit_of(manifest).encode())
        os.fchmod(fd, 0o444)
        os.fsync(fd)
    finally:
        os.close(fd)
    return refs
