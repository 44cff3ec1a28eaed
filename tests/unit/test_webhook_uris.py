"""The on-demand allow-list: what it permits, and what nobody gets past it by writing it another way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.errors import PolicyRefused, UsageError
from cacheagent.kube.names import model_name_of_uri
from cacheagent.kube.uris import (
    AllowList,
    UriRule,
    find_rule,
    get_rule,
    parse_uri,
    refused_address,
    repository_of,
)

ALLOW = AllowList(
    rules=(
        UriRule(
            prefix="s3://team-a", namespaces=("team-a",), credentials="a", endpoint="https://s3.example", region="x"
        ),
        UriRule(prefix="s3://shared/open/", namespaces=("*",)),
        UriRule(prefix="s3://shared/open/secret", namespaces=("team-a",), credentials="deep"),
        UriRule(prefix="hf://org", namespaces=("team-a", "team-b"), credentials="hub"),
        UriRule(prefix="hf://other/model@v1", namespaces=("*",)),
        UriRule(prefix="https://Models.Example:443/pub", namespaces=("*",)),
        UriRule(prefix="file:///data", namespaces=("*",)),
        UriRule(prefix="nfs://filer/export/models", namespaces=("*",)),
        UriRule(prefix="s3://nobody", namespaces=()),
    ),
    file_roots=("/data/models", "/srv/my models"),
)


@pytest.mark.parametrize(
    ("written", "namespace", "uri", "credentials"),
    [
        ("s3://team-a", "team-a", "s3://team-a", "a"),
        ("s3://team-a/", "team-a", "s3://team-a", "a"),
        ("S3://team-a/llama/v1/", "team-a", "s3://team-a/llama/v1", "a"),
        ("s3://shared/open/x", "anyone", "s3://shared/open/x", ""),
        ("s3://shared/open/secret/x", "team-a", "s3://shared/open/secret/x", "deep"),
        ("s3://shared/open/secret/x", "team-b", "s3://shared/open/secret/x", ""),
        ("hf://org/name", "team-b", "hf://org/name", "hub"),
        ("HF://org/name@refs/pr/1", "team-a", "hf://org/name@refs/pr/1", "hub"),
        ("hf://other/model@v1", "x", "hf://other/model@v1", ""),
        ("https://models.example/pub/m/", "x", "https://models.example/pub/m", ""),
        ("HTTPS://MODELS.EXAMPLE:443/pub/a%20b", "x", "https://models.example/pub/a%20b", ""),
        ("file:///data/models/llama", "x", "file:///data/models/llama", ""),
        ("nfs://FILER/export/models/llama", "x", "nfs://filer/export/models/llama", ""),
    ],
)
def test_what_a_rule_permits(written: str, namespace: str, uri: str, credentials: str) -> None:
    """At or below the prefix, in one spelling, with the credential of the most exact rule of that namespace."""
    found = find_rule(written, namespace, ALLOW)
    assert found is not None
    assert (found.uri, found.rule.credentials) == (uri, credentials)
    assert found.model == model_name_of_uri(uri, credentials)


@pytest.mark.parametrize(
    ("written", "namespace"),
    [
        ("s3://team-a-private", "team-a"),
        ("s3://team-a-private/x", "team-a"),
        ("s3://Team-A/x", "team-a"),
        ("s3://team-a/x", "team-b"),
        ("s3://team-a/x", "team"),
        ("s3://shared", "x"),
        ("s3://shared/openly", "x"),
        ("s3://nobody/x", "x"),
        ("hf://organisation/name", "team-a"),
        ("hf://other/model", "x"),
        ("hf://other/model@v2", "x"),
        ("https://models.example.evil.test/pub/m", "x"),
        ("https://models.example:8443/pub/m", "x"),
        ("http://models.example/pub/m", "x"),
        ("https://models.example/public", "x"),
        ("file:///data/other", "x"),
        ("file:///data", "x"),
        ("file:///srv/my%20models/m", "x"),
        ("nfs://filer2/export/models/llama", "x"),
        ("nfs://filer/export/models-2", "x"),
    ],
)
def test_what_no_rule_permits(written: str, namespace: str) -> None:
    """Names that only begin alike, another host, port, scheme, revision or namespace, and files outside the roots."""
    assert find_rule(written, namespace, ALLOW) is None
    with pytest.raises(PolicyRefused, match="may not use"):
        get_rule(written, namespace, ALLOW)


@pytest.mark.parametrize(
    "written",
    [
        "team-a", "ftp://team-a/x", "://x", "s3://", "s3:///x", "s3://a", "s3:team-a/x",
        "s3://team-a//x", "s3://team-a/x//", "s3://team-a/./x", "s3://team-a/../team-b", "s3://team-a/x/..",
        "s3://team-a/%2e%2e/team-b", "s3://team-a/%2E./x", "s3://team-a/a%2fb", "s3://team-a/a%5cb", "s3://team-a/%252e",
        "s3://team-a/%00", "s3://team-a/%0a", "s3://team-a/%", "s3://team-a/%zz", "s3://team-a/%4", "s3://team-a/a?b",
        "s3://team-a/a#b", "s3://team-a/a b", "s3://team-a/a\tb", "s3://team-a/a\nb", "s3://team-a\\x", "s3://team-a/é",
        "s3://key:secret@team-a/x", "https://user@models.example/pub", "https://models.example@evil.test/pub",
        "https://models.example:99999/pub", "https://models.example:0/pub", "https:///pub", "https://a..b/pub",
        "https://localhost/pub", "https://a.localhost/pub", "https://127.0.0.1/pub", "https://127.1/pub",
        "https://2130706433/pub", "https://0x7f.0.0.1/pub", "https://0177.0.0.1/pub", "https://[::1]/pub",
        "https://[::ffff:169.254.169.254]/pub", "http://169.254.169.254/latest/meta-data", "http://[fd00:ec2::254]/latest",
        "file://host/data/models", "file://", "file:///", "nfs://filer", "nfs:///export",
        "hf://", "hf://a/b/c", "hf://org//name", "hf://org/name@", "hf://org/name@a..b", "hf://org/na me", "hf://-/x",
        "s3://team-a/" + "x" * 1100,
    ],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_refused(written: str) -> None:
    """Dots, escapes, users, odd addresses: a sentence, not a guess."""
    with pytest.raises(UsageError) as refused:
        find_rule(written, "team-a", ALLOW)
    assert written[:100] in refused.value.message or repr(written[:100])[1:-1] in refused.value.message


@pytest.mark.parametrize(
    "prefix", ["s3://", "https://", "hf://", "file:///", "s3://a/../b", "x", "http://169.254.169.254"]
)
def test_a_rule_names_somebody(prefix: str) -> None:
    """A prefix without bucket, host, organisation or directory, or of a metadata service, is a mistake."""
    with pytest.raises(ValueError, match="on-demand prefix"):
        UriRule(prefix=prefix, namespaces=("*",))


def test_an_allow_list_is_checked_whole() -> None:
    """Roots are absolute directories, networks are networks."""
    with pytest.raises(ValueError, match="file root"):
        AllowList(file_roots=("data",))
    with pytest.raises(ValueError, match="file root"):
        AllowList(file_roots=("/",))
    with pytest.raises(ValueError, match="does not appear to be"):
        AllowList(cluster_networks=("10.0.0.0/99",))


def test_the_rule_brings_server_and_credential() -> None:
    """The pod's author chooses a path; where it is asked for and as whom is the administrator's choice."""
    source = get_rule("s3://team-a/llama", "team-a", ALLOW).source
    assert (source.uri, source.endpoint, source.region, source.credentials) == (
        "s3://team-a/llama", "https://s3.example", "x", "a",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("8.8.8.8", False), ("10.1.2.3", False), ("2001:db8::1", False), ("192.168.0.1", False),
        ("127.0.0.1", True), ("127.9.9.9", True),
        ("169.254.169.254", True), ("0.0.0.0", True), ("::1", True), ("::", True),
        ("fe80::1%eth0", True), ("[fe80::1]", True), ("::ffff:169.254.169.254", True), ("fd00:ec2::254", True),
        ("10.96.0.1", True), ("::ffff:10.96.0.1", True), ("100.100.100.200", True), ("host", True),
    ],
)  # fmt: skip
def test_addresses_that_nothing_is_fetched_from(address: str, refused: bool) -> None:  # noqa: FBT001 - a table
    """The node itself, link-local and metadata addresses, and the cluster's own networks."""
    assert bool(refused_address(address, ("10.96.0.0/16",))) is refused


def test_the_repository_of_a_hub_uri() -> None:
    """What the `hf` view is named after."""
    assert repository_of("hf://org/name@main") == "org/name"
    assert repository_of("s3://b/p") == ""


_TEXT = st.text(alphabet="abAB./%2eEfF\\@:?#[]0x-~ \té", max_size=30)


@given(scheme=st.sampled_from(["s3", "S3", "hf", "https", "file", "nfs", "x"]), rest=_TEXT)
def test_whatever_is_permitted_stays_below_its_prefix(scheme: str, rest: str) -> None:
    """Any text is either refused or has one plain spelling, which parses to itself and lies below the rule's."""
    rules = tuple(
        UriRule(prefix=prefix, namespaces=("*",))
        for prefix in ("s3://aB/a", "hf://a", "https://ab/a", "file:///a", "nfs://ab/a")
    )
    for uri in (f"{scheme}://{rest}", f"{scheme}://aB/a{rest}", f"{scheme}:///a{rest}"):
        try:
            found = find_rule(uri, "n", AllowList(rules=rules, file_roots=("/a",)))
        except UsageError:
            continue
        if found is not None:
            assert parse_uri(found.uri).text == found.uri
            assert found.uri == found.rule.prefix or found.uri[len(found.rule.prefix)] in "/@"
            assert found.uri.startswith(found.rule.prefix)
            assert not {"", ".", ".."} & set(parse_uri(found.uri).segments)
            assert found.uri.endswith("/".join(parse_uri(found.uri).segments) or found.rule.prefix) or "@" in found.uri
