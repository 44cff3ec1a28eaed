"""The digest's inputs, byte by byte."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.model import (
    PIECE_SIZE_BYTES,
    Checksum,
    Manifest,
    RemoteFile,
    TrustDomain,
    blob_id,
    canonical_json,
    piece_count,
    piece_range,
)

MANIFEST = Manifest(
    kind="checkpoint",
    source_kind="s3",
    revision="",
    repo_id="acme/tiny",
    files=(
        RemoteFile(path="config.json", size_bytes=2, identity={"key": "m/config.json", "etag": '"e1"'}),
        RemoteFile(
            path="modèle.safetensors",
            size_bytes=40_000_000,
            identity={"key": "m/modèle.safetensors", "etag": '"e2-2"'},
            checksums=(
                Checksum(algorithm="crc64nvme", value="00112233aabbccdd"),
                Checksum(algorithm="crc32", value="deadbeef", parts=((16_777_216, 2), (6_445_568, 1))),
            ),
        ),
    ),
)

CANONICAL = (
    '{"files":['
    '{"checksums":[],"identity":{"etag":"\\"e1\\"","key":"m/config.json"},"path":"config.json","size_bytes":2},'
    '{"checksums":['
    '{"algorithm":"crc64nvme","parts":[],"value":"00112233aabbccdd"},'
    '{"algorithm":"crc32","parts":[[16777216,2],[6445568,1]],"value":"deadbeef"}],'
    '"identity":{"etag":"\\"e2-2\\"","key":"m/modèle.safetensors"},"path":"modèle.safetensors","size_bytes":40000000}],'
    '"format":1,"kind":"checkpoint","repo_id":"acme/tiny","revision":"","source_kind":"s3"}'
)


def test_the_digest_is_over_exactly_these_bytes() -> None:
    """A change of these bytes renames every model on every node: bump MANIFEST_FORMAT and write a decision note."""
    assert canonical_json(msgspec.to_builtins(MANIFEST)).decode() == CANONICAL


def test_the_digest_of_the_golden_manifest() -> None:
    """The digest is SHA-256 of the canonical bytes; docs/design.md quotes this value."""
    assert MANIFEST.digest == "sha256:0d3d5dcf76fdd6a1b56a292cb674ef8175992d64f72389d70ad8ca25c219bdbc"


def test_a_blob_is_named_by_domain_identity_and_size() -> None:
    """Another credential, endpoint, identity or size is another blob; another path is not."""
    file = MANIFEST.files[1]
    domain = TrustDomain(endpoint="https://s3.example", credential="team-a")
    name = blob_id(domain, file)
    assert name == "9cf46eddd8ca9b0f944b3736fc532d6b492eb541bccbd93404ba040c35df17ec"
    assert blob_id(domain, msgspec.structs.replace(file, path="elsewhere", checksums=())) == name
    others = {
        blob_id(TrustDomain(endpoint="https://s3.example", credential="team-b"), file),
        blob_id(TrustDomain(endpoint="https://s4.example", credential="team-a"), file),
        blob_id(domain, msgspec.structs.replace(file, size_bytes=1)),
        blob_id(domain, msgspec.structs.replace(file, identity={"key": "m/modèle.safetensors", "etag": '"e3"'})),
    }
    assert len(others | {name}) == 5


def test_a_manifest_survives_its_own_json() -> None:
    """What a record holds is parsed back into the same value, and unknown fields are refused."""
    text = msgspec.json.encode(MANIFEST)
    assert msgspec.json.decode(text, type=Manifest) == MANIFEST
    with pytest.raises(msgspec.ValidationError, match="unknown field `surprise`"):
        msgspec.json.decode(text.replace(b'"kind"', b'"surprise":1,"kind"', 1), type=Manifest)


@pytest.mark.parametrize(
    ("size", "count"),
    [(0, 0), (1, 1), (PIECE_SIZE_BYTES, 1), (PIECE_SIZE_BYTES + 1, 2), (3 * PIECE_SIZE_BYTES, 3)],
)
def test_pieces_cover_a_file_without_holes(size: int, count: int) -> None:
    """Pieces lie end to end from 0 to the file's size."""
    ranges = [piece_range(size, index) for index in range(piece_count(size))]
    assert len(ranges) == count
    assert sum(length for _, length in ranges) == size
    assert all(offset == index * PIECE_SIZE_BYTES for index, (offset, _) in enumerate(ranges))
    with pytest.raises(IndexError):
        piece_range(size, count)


_TEXT = st.text(st.characters(codec="utf-8"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | _TEXT,
        lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner),
    )
)
def test_the_canonical_form_is_what_the_standard_library_writes(value: Any) -> None:
    """Byte for byte: another program can compute a digest without our encoder."""
    plain = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    assert canonical_json(value) == plain.encode()
