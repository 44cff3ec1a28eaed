"""Proof of a small file that was read whole: its size and the hashes that the listing promised. Pure."""

from __future__ import annotations

import hashlib

from cacheagent.errors import ChecksumMismatch, SourceChanged
from cacheagent.model import RemoteFile


def check_body(file: RemoteFile, body: bytes, where: str) -> bytes:
    """The body itself if it is what was listed. CRCs are left to the transfer: these files are fetched again by it."""
    if len(body) != file.size_bytes:
        raise SourceChanged(f"{where} has {len(body)} bytes, {file.size_bytes} were listed", hint="resolve again")
    for checksum in file.checksums:
        if checksum.algorithm == "sha256" and not checksum.parts:
            found = hashlib.sha256(body).hexdigest()
        elif checksum.algorithm == "git-sha1":
            found = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
        else:
            continue
        if found != checksum.value:
            raise ChecksumMismatch(
                f"{where} has {checksum.algorithm} {found}, the listing says {checksum.value}",
                hint="the file and its listing do not belong together; ask whoever published them",
            )
    return body
