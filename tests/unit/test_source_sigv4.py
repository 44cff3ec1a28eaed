"""Presigned URLs are those of botocore."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.source.s3.sigv4 import Keys, Method, Presigner, plain_url

NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request to sign."""

    method: Method
    base_url: str
    key: str
    version: str
    token: str | None
    checksum_mode: bool


CASES = st.builds(
    Case,
    method=st.sampled_from(["GET", "HEAD"]),
    base_url=st.sampled_from(
        [
            "http://127.0.0.1:8333/bucket",
            "https://s3.example.org:443/bucket",
            "http://s3.example.org:80/bucket",
            "https://bucket.s3.eu-west-1.amazonaws.com",
            "http://[::1]:9000/bucket",
        ]
    ),
    key=st.text(st.characters(codec="utf-8"), min_size=1),
    version=st.sampled_from(["", "3/L4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY="]),
    token=st.sampled_from([None, "IQoJb3JpZ2luX2VjE/+=="]),
    checksum_mode=st.booleans(),
)


def botocore_url(case: Case) -> str:
    """Signed by botocore itself."""
    url = f"{case.base_url}/{quote(case.key, safe='/~')}"
    url += f"?versionId={quote(case.version, safe='')}" if case.version else ""
    request = AWSRequest(case.method, url, headers={"x-amz-checksum-mode": "ENABLED"} if case.checksum_mode else {})
    credentials = ReadOnlyCredentials("AKIA/EXAMPLE", SECRET, case.token)
    with patch("botocore.auth.get_current_datetime", return_value=NOW):
        S3SigV4QueryAuth(credentials, "s3", "eu-west-1", 7200).add_auth(request)
    return str(request.url)


def our_url(case: Case) -> str:
    """Ours for the same keys and time."""
    keys = Keys(access_key="AKIA/EXAMPLE", secret_key=SECRET, session_token=case.token)
    signer = Presigner(
        case.base_url, keys=keys, region="eu-west-1", now=NOW, expires_s=7200, checksum_mode=case.checksum_mode
    )
    return signer.sign(case.key, case.version, method=case.method)


@given(CASES)
def test_urls_equal_botocores(case: Case) -> None:
    """Whatever the method, key, version, token, address style and port, botocore would have signed exactly so."""
    ours, _, our_query = our_url(case).partition("?")
    expected, _, expected_query = botocore_url(case).partition("?")
    assert ours == expected.replace("org:443/", "org/").replace("org:80/", "org/")
    # botocore puts the parameters in another order; the signature, which is one of them, covers them sorted.
    assert sorted(our_query.split("&")) == sorted(expected_query.split("&"))


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
