"""Resolve: what a source holds now becomes a manifest, or is refused before the first byte."""

from __future__ import annotations

from typing import Final

from cacheagent.model import MIB, Manifest
from cacheagent.select import check_complete, index_files, select_files
from cacheagent.source.base import Source
from cacheagent.spec import ModelSpec

MAX_INDEX_BYTES: Final = 64 * MIB
"""A shard index names tensors, a few hundred bytes each; the largest seen are some MB. Chosen."""


async def resolve(source: Source, spec: ModelSpec) -> Manifest:
    """List, choose, check for completeness, pin. Raises OriginWrong and its children, OriginUnavailable."""
    listing = await source.list()
    chosen = select_files(listing.files, spec)
    indexes = {file.path: await source.read(file, MAX_INDEX_BYTES) for file in index_files(chosen, spec)}
    check_complete(chosen, indexes, spec)
    files = await source.describe(chosen)
    return Manifest(
        kind=spec.kind,
        source_kind=source.kind,
        files=tuple(sorted(files, key=lambda file: file.path)),
        revision=listing.revision,
        repo_id=spec.repo_id or listing.repo_id,
    )
