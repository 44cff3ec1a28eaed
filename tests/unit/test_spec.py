"""What a source may be written as."""

import pytest

from cacheagent.errors import UsageError
from cacheagent.spec import SourceSpec


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:geheim@host/models/",
        "https://geheim@host/models/",
        "https://geheim@host",
        "s3://key:geheim@bucket/prefix",
        "HTTPS://host/x?X-Amz-Signature=geheim",
        "http://host?token=geheim",
        "https://host/x#geheim",
    ],
)
def test_a_url_that_holds_a_secret_is_refused_without_repeating_it(uri: str) -> None:
    """It would be shown in every state, log and record."""
    for source in ({"uri": uri}, {"uri": "s3://bucket/prefix", "endpoint": uri}):
        with pytest.raises(UsageError, match="holds a user, a password or a query") as caught:
            SourceSpec(**source)  # type: ignore[arg-type]
        assert "geheim" not in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/what?/is#this@home",
        "hf://org/name@main",
        "https://host:8443/models/a@b/",
        "file:///mnt/what?#/x@y",
        "nfs://server/export/x@y",
        "memory://a",
        "no scheme",
    ],
)
def test_what_only_looks_like_it_is_taken(uri: str) -> None:
    """Letters of keys, paths and revisions."""
    assert SourceSpec(uri=uri).uri == uri
