"""Where models come from: one small protocol (`base`), one module for each kind of origin, wrappers stacked here."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cacheagent.errors import UsageError
from cacheagent.source.base import Source
from cacheagent.source.wrap import Limited, Retrying
from cacheagent.spec import SourceSpec

CALLS_AT_A_TIME = 8
"""Calls of one source at a time: large files are located one by one. Chosen."""


def open_source(spec: SourceSpec, *, mounts: Mapping[str, str] | None = None) -> Source:
    """The source that `spec.uri` names. Opens no connection yet, but may read credential configuration files.

    `mounts` (`server:/export` -> directory) is for `nfs://`; None takes it from the environment. Raises UsageError,
    ConfigError."""
    return Retrying(Limited(_open_bare(spec, mounts), limit=CALLS_AT_A_TIME))


def _open_bare(spec: SourceSpec, mounts: Mapping[str, str] | None) -> Source:
    # Imported late: boto3 and huggingface_hub take a third of a second each, and most processes need one of them at
    # most.
    scheme = spec.uri.partition("://")[0].lower()
    if scheme == "s3":
        from cacheagent.source.s3 import S3Source

        return S3Source(spec)
    if scheme == "hf":
        from cacheagent.source.hf import HfSource

        return HfSource(spec)
    if scheme in {"https", "http"}:
        from cacheagent.source.https import HttpsSource

        return HttpsSource(spec)
    if scheme in {"file", "nfs"}:
        from cacheagent.source.posix import NFS_MOUNTS, PosixSource, parse_mounts

        return PosixSource(spec, mounts=parse_mounts(os.environ.get(NFS_MOUNTS, "")) if mounts is None else mounts)
    raise UsageError(
        f"{scheme!r} is no kind of source" if "://" in spec.uri else f"{spec.uri[:200]!r} has no scheme",
        hint="s3://bucket/prefix, hf://org/name, https://host/path/, file:///path or nfs://server/export/path",
    )
