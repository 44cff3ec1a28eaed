"""Presigned URLs are those of botocore."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.source.s3.sigv4 import Keys, Presigner, plain_url

NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


def botocore_url(url: str, token: str | None, *, checksum_mode: bool) -> str:
    """The same request signed by botocore itself."""
    request = AWSRequest("GET", url, headers={"x-amz-checksum-mode": "ENABLED"} if checksum_mode else {})
    with patch("botocore.auth.get_current_datetime", return_value=NOW):
        S3SigV4QueryAuth(ReadOnlyCredentials("AKIA/EXAMPLE", SECRET, token), "s3", "eu-west-1", 7200).add_auth(request)
    return str(request.url)


def our_signer(base_url: str, token: str | None, *, checksum_mode: bool) -> Presigner:
    """Ours for the same keys and time."""
    keys = Keys(access_key="AKIA/EXAMPLE", secret_key=SECRET, session_token=token)
    return Presigner(base_url, keys=keys, region="eu-west-1", now=NOW, expires_s=7200, checksum_mode=checksum_mode)


@given(
    key=st.text(st.characters(codec="utf-8"), min_size=1),
    version=st.sampled_from(["", "3/L4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY="]),
    token=st.sampled_from([None, "IQoJb3JpZ2luX2VjE/+=="]),
    base_url=st.sampled_from(
        [
            "http://127.0.0.1:8333/bucket",
            "https://s3.example.org:443/bucket",
            "http://s3.example.org:80/bucket",
            "https://bucket.s3.eu-west-1.amazonaws.com",
            "http://[::1]:9000/bucket",
        ]
    ),
    checksum_mode=st.booleans(),
)
def test_urls_equal_botocores(key: str, version: str, token: str | None, base_url: str, checksum_mode: bool) -> None:  # noqa: FBT001 - hypothesis passes it by name
    """Whatever the key, version, token, address style and port, botocore would have signed exactly so."""
    url = f"{base_url}/{quote(key, safe='/~')}"
    expected = botocore_url(
        f"{url}?versionId={quote(version, safe='')}" if version else url, token, checksum_mode=checksum_mode
    )
    ours = our_signer(base_url, token, checksum_mode=checksum_mode).sign(key, version)
    assert ours.partition("?")[0] == expected.partition("?")[0].replace("org:443/", "org/").replace("org:80/", "org/")
    # botocore puts the parameters in another order; the signature, which is one of them, covers them sorted.
    assert sorted(ours.partition("?")[2].split("&")) == sorted(expected.partition("?")[2].split("&"))


def test_keys_do_not_show_what_signs() -> None:
    """A repr in a traceback holds the access key at most."""
    assert SECRET not in repr(Keys(access_key="AKIA", secret_key=SECRET, session_token="session"))
    assert "session'" not in repr(Keys(access_key="AKIA", secret_key=SECRET, session_token="session"))


@pytest.mark.parametrize(
    ("key", "version", "url"),
    [
        ("a b/ü.txt", "", "http://h/b/a%20b/%C3%BC.txt"),
        ("a+b", "v/1", "http://h/b/a%2Bb?versionId=v%2F1"),
    ],
)
def test_public_objects_have_plain_urls(key: str, version: str, url: str) -> None:
    """Without credentials nothing is signed, and names are encoded all the same."""
    assert plain_url("http://h/b", key, version) == url
