"""What S3 says, turned into values: listings, checksums, errors."""

from __future__ import annotations

import base64
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.errors import (
    CacheAgentError,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginUnavailable,
    OriginWrong,
    SourceChanged,
)
from cacheagent.model import MIB, Checksum
from cacheagent.source.s3.checksums import found_checksums, run_lengths, to_checksums, uniform_parts
from cacheagent.source.s3.errors import Asker, s3_error
from cacheagent.source.s3.listing import ListedObject, Page, parse_page

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def listing(rows: str, more: str = "", *, name: str = "ListBucketResult", encoding: str = "url") -> bytes:
    """A page as servers write it."""
    encoded = f"<EncodingType>{encoding}</EncodingType>" if encoding else ""
    return f'<?xml version="1.0"?><{name} xmlns="{NAMESPACE}"><Name>b</Name>{encoded}{more}{rows}</{name}>'.encode()


def row(key: str, *, size: str = "5", etag: str = '"e"') -> str:
    """One object of a page."""
    return f"<Contents><Key>{escape(key)}</Key><ETag>{escape(etag)}</ETag><Size>{size}</Size></Contents>"


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1)))
def test_keys_come_back_as_they_were_stored(keys: list[str]) -> None:
    """URL encoding carries every character that XML could not."""
    page = parse_page(listing("".join(row(quote_plus(key)) for key in keys)))
    assert page == Page(objects=tuple(ListedObject(key=key, size_bytes=5, etag="e") for key in keys), following={})


def test_keys_are_taken_literally_where_the_server_encodes_nothing() -> None:
    """A server that ignores encoding-type means a plus by a plus, namespace or not."""
    page = parse_page(b"<ListBucketResult>" + row("a+b%20c").encode() + b"</ListBucketResult>")
    assert page is not None
    assert [item.key for item in page.objects] == ["a+b%20c"]


def test_a_page_that_goes_on_says_from_where() -> None:
    """Continuation tokens are passed on as they are; a key marker is decoded."""
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>a+b==</NextContinuationToken>"
    page = parse_page(listing(row("k"), more))
    assert page is not None
    assert page.following == {"ContinuationToken": "a+b=="}
    more = (
        "<IsTruncated>true</IsTruncated><NextKeyMarker>a+b</NextKeyMarker><NextVersionIdMarker>v</NextVersionIdMarker>"
    )
    page = parse_page(listing("", more, name="ListVersionsResult"))
    assert page is not None
    assert page.following == {"KeyMarker": "a b", "VersionIdMarker": "v"}


def test_of_versions_only_the_current_ones_count() -> None:
    """Older versions and delete markers are left out; `null` is the version of objects from before versioning."""

    def version(key: str, version_id: str, *, latest: str) -> str:
        identity = f"<Key>{key}</Key><VersionId>{version_id}</VersionId><IsLatest>{latest}</IsLatest>"
        return f"<Version>{identity}<Size>1</Size></Version>"

    rows = version("a", "v2", latest="true") + version("a", "v1", latest="false") + version("b", "null", latest="true")
    rows += "<DeleteMarker><Key>c</Key><VersionId>v9</VersionId><IsLatest>true</IsLatest></DeleteMarker>"
    page = parse_page(listing(rows, name="ListVersionsResult"))
    assert page is not None
    assert [(item.key, item.version_id) for item in page.objects] == [("a", "v2"), ("b", "")]


@pytest.mark.parametrize(
    "body", [b"", b"<ListBucketResult><Contents>", b"<Error><Code>InternalError</Code></Error>", b"not xml"]
)
def test_what_is_no_listing_is_left_to_botocore(body: bytes) -> None:
    """Errors with status 200 and bodies that were cut off are for its retries."""
    assert parse_page(body) is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (listing(row("k", size="many")), "an object without key or size"),
        (listing("<Contents><Size>1</Size></Contents>"), "an object without key or size"),
        (listing(row("k"), "<IsTruncated>true</IsTruncated>"), "goes on, but not from where"),
    ],
)
def test_a_listing_that_contradicts_itself_is_refused(body: bytes, message: str) -> None:
    """Nothing is guessed about a listing that can't be right."""
    with pytest.raises(OriginWrong, match=message):
        parse_page(body)


def b64(hexadecimal: str) -> str:
    """As S3 writes a checksum."""
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


def test_whole_object_checksums_of_every_algorithm_are_found() -> None:
    """Base64 becomes hex; a missing type means the whole object, as SeaweedFS answers."""
    lengths = {"CRC64NVME": 8, "CRC32": 4, "CRC32C": 4, "SHA1": 20, "SHA256": 32}
    for name, length in lengths.items():
        for kind in ({}, {"x-amz-checksum-type": "FULL_OBJECT"}):
            found = found_checksums({f"x-amz-checksum-{name.lower()}": b64("ab" * length), **kind})
            assert found == {name.lower(): ("ab" * length, 0)}


def test_composites_need_the_sizes_of_their_parts() -> None:
    """A composite is usable with as many part sizes as it has parts, and only then; a whole one always is."""
    found = found_checksums({"x-amz-checksum-crc32": b64("01020304") + "-3", "x-amz-checksum-crc64nvme": b64("11" * 8)})
    whole = Checksum(algorithm="crc64nvme", value="11" * 8)
    parts = ((8 * MIB, 2), (5, 1))
    assert to_checksums(found, ()) == (whole,)
    assert to_checksums(found, ((8 * MIB, 2),)) == (whole,)
    assert to_checksums(found, parts) == (whole, Checksum(algorithm="crc32", value="01020304", parts=parts))


@pytest.mark.parametrize("value", ["", "!!!!", b64("0102"), b64("0102030405"), "AQIDBA", b64("01020304") + "-x"])
def test_what_is_malformed_counts_as_absent(value: str) -> None:
    """Wrong length, wrong alphabet, wrong padding: fewer checksums, never an error."""
    assert found_checksums({"x-amz-checksum-crc32c": value, "x-amz-checksum-crc32": b64("01020304")}) == {
        "crc32": ("01020304", 0)
    }


def test_a_composite_without_its_number_of_parts_is_not_guessed() -> None:
    """COMPOSITE without `-<parts>` can't be folded."""
    assert found_checksums({"x-amz-checksum-crc32": b64("01020304"), "x-amz-checksum-type": "COMPOSITE"}) == {}


def test_part_sizes_are_run_lengths_that_add_up() -> None:
    """Equal neighbours are counted; sizes that are not the object's are thrown away."""
    assert run_lengths([8, 8, 8, 3], 27) == ((8, 3), (3, 1))
    assert run_lengths([5, 8, 8, 5], 26) == ((5, 1), (8, 2), (5, 1))
    assert run_lengths([8, 8], 17) == ()
    assert run_lengths([], 0) == ()
    assert run_lengths([8, 0], 8) == ()


def test_uniform_parts_follow_from_the_first_and_the_last() -> None:
    """All but the last are alike and the sum is the object's size, or nothing is known."""
    assert uniform_parts(8, 3, 4, 27) == ((8, 3), (3, 1))
    assert uniform_parts(8, 8, 2, 16) == ((8, 2),)
    assert uniform_parts(8, 3, 4, 28) == ()
    assert uniform_parts(3, 8, 2, 11) == ()


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("NoSuchBucket", 404, OriginNotFound),
        ("NoSuchKey", 404, OriginNotFound),
        ("404", 404, OriginNotFound),
        ("AccessDenied", 403, OriginForbidden),
        ("403", 403, OriginForbidden),
        ("SignatureDoesNotMatch", 403, OriginForbidden),
        ("ExpiredToken", 400, OriginForbidden),
        ("RequestTimeTooSkewed", 403, OriginForbidden),
        ("PreconditionFailed", 412, SourceChanged),
        ("412", 412, SourceChanged),
        ("SlowDown", 503, OriginThrottled),
        ("503", 503, OriginThrottled),
        ("429", 429, OriginThrottled),
        ("InternalError", 500, OriginUnavailable),
        ("504", 504, OriginUnavailable),
        ("PermanentRedirect", 301, OriginWrong),
        ("Teapot", 418, OriginWrong),
    ],
)
def test_each_code_means_what_the_asker_does_next(code: str, status: int, kind: type[CacheAgentError]) -> None:
    """The class is the action; the sentence names what was asked, where, and a next step."""
    error = s3_error(code, status, "listing 'm/'", Asker(endpoint="http://s3", credential="with profile 'p'"))
    assert type(error) is kind
    assert error.message.startswith("listing 'm/': http://s3 answered ")
    assert error.hint
    assert ("with profile 'p'" in error.hint) == (kind is OriginForbidden)
