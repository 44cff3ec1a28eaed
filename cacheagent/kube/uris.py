r"""Which URIs a pod may ask for without a ModelCache: the administrator's allow-list. Pure.

A rule permits a prefix to namespaces, with the credential and the server that go with it. Prefixes are compared
segment by segment, after everything that could make two readers see two different paths was refused: dot segments,
empty segments, escapes of `.`, `/`, `\` and `%`, users, queries. What is compared is what is fetched."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from cacheagent.addresses import LOCAL_NETWORKS, is_refused
from cacheagent.errors import PolicyRefused, UsageError
from cacheagent.kube.names import model_name_of_uri
from cacheagent.kube.objects import Source
from cacheagent.model import Value

EVERY_NAMESPACE: Final = "*"
SCHEMES: Final = ("s3", "hf", "https", "http", "file", "nfs")
LONGEST_URI: Final = 1024
"""Characters. S3 keys have at most 1,024 bytes; an object's status has to hold some of these. Chosen."""

_UNSAFE: Final = re.compile(r"[^\x21-\x7e]|[\\?#]")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})?")
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_NUMERIC_HOST: Final = re.compile(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+))*")
_PORTS: Final = {"https": "443", "http": "80"}


class UriRule(Value):
    """Permits every URI at or below `prefix` to `namespaces` (`*` is every one; none is nobody).

    `credentials`: the *name* of the credential that it is read with. `endpoint`, `region`, `ca_bundle`, `path_style`:
    as in a ModelCache's source. Raises ValueError when parsed with a prefix that names no bucket, host, organisation
    or directory."""

    prefix: str
    namespaces: tuple[str, ...] = ()
    credentials: str = ""
    endpoint: str = ""
    region: str = ""
    ca_bundle: str = ""
    path_style: bool | None = None

    def __post_init__(self) -> None:
        try:
            parse_uri(self.prefix)
        except UsageError as error:
            raise ValueError(f"on-demand prefix {self.prefix!r}: {error}") from error


class AllowList(Value):
    """`rules`: a URI needs one. `file_roots`: directories on the nodes; a `file://` URI must lie below one of them as
    well. `cluster_networks`: pod and service networks (CIDR), where nothing is fetched from."""

    rules: tuple[UriRule, ...] = ()
    file_roots: tuple[str, ...] = ()
    cluster_networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for root in self.file_roots:
            try:
                _root_segments(root)
            except UsageError as error:
                raise ValueError(f"file root {root!r}: {error}") from error
        for network in self.cluster_networks:
            ipaddress.ip_network(network)


class ParsedUri(NamedTuple):
    """`authority`: host and port, bucket, or empty. `revision` only of `hf`. `text`: the one spelling."""

    scheme: str
    authority: str
    segments: tuple[str, ...]
    revision: str
    text: str


class PermittedUri(NamedTuple):
    """A URI in its one spelling, the rule that permits it, and the ModelCache's name that stands for both."""

    uri: str
    rule: UriRule
    model: str

    @property
    def source(self) -> Source:
        """Where the model comes from, as a ModelCache says it."""
        rule = self.rule
        return Source(
            uri=self.uri,
            endpoint=rule.endpoint,
            region=rule.region,
            credentials=rule.credentials,
            ca_bundle=rule.ca_bundle,
            path_style=rule.path_style,
        )


def is_uri(written: str) -> bool:
    """Whether a model's name is a URI instead."""
    return "://" in written


def repository_of(uri: str) -> str:
    """`org/name` of an `hf://` URI, else empty."""
    scheme, _, rest = uri.partition("://")
    return rest.partition("@")[0].strip("/") if scheme.lower() == "hf" else ""


def parse_uri(written: str) -> ParsedUri:
    """One spelling of a URI. Raises UsageError that says what is wrong with it."""
    scheme, separator, rest = written.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        raise _wrong(written, f"has none of the schemes {', '.join(SCHEMES)}")
    if len(written) > LONGEST_URI:
        raise _wrong(written, f"is longer than {LONGEST_URI} characters")
    if _UNSAFE.search(rest):
        raise _wrong(written, "has a space, a letter that is not ASCII, a backslash, '?' or '#'")
    _check_escapes(written)
    if scheme == "hf":
        return _parse_hf(written, rest)
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise _wrong(written, "has a user in it; the administrator's rule names the credential")
    authority = _authority(written, scheme, authority)
    segments = _segments(written, path)
    if scheme in {"file", "nfs"} and not segments:
        raise _wrong(written, "names no directory")
    text = f"{scheme}://{authority}" + "".join(f"/{segment}" for segment in segments)
    return ParsedUri(scheme, authority, segments, "", text)


def find_rule(uri: str, namespace: str, allow_list: AllowList) -> PermittedUri | None:
    """The rule that permits this URI to this namespace: the one with the longest prefix among those of the namespace,
    the first of equal ones. Raises UsageError for a URI that can't be understood."""
    parsed = parse_uri(uri)
    if parsed.scheme == "file" and not _below_a_root(parsed, allow_list.file_roots):
        return None
    found = [
        (len(prefix.segments) + bool(prefix.revision), rule)
        for rule in allow_list.rules
        if EVERY_NAMESPACE in rule.namespaces or namespace in rule.namespaces
        if _covers(prefix := parse_uri(rule.prefix), parsed)
    ]
    if not found:
        return None
    rule = max(found, key=lambda pair: pair[0])[1]
    return PermittedUri(parsed.text, rule, model_name_of_uri(parsed.text, rule.credentials))


def get_rule(uri: str, namespace: str, allow_list: AllowList) -> PermittedUri:
    """As `find_rule`. Raises PolicyRefused with a sentence for the person when nothing permits it."""
    if found := find_rule(uri, namespace, allow_list):
        return found
    raise PolicyRefused(
        f"namespace {namespace!r} may not use {uri[:200]}",
        hint="ask the administrator for a rule in the on-demand allow-list, or use a ModelCache by its name",
    )


def refused_address(address: str, cluster_networks: Iterable[str] = ()) -> str:
    """Why nothing on demand is fetched from this IP address (after name resolution, after each redirect); empty if it
    may be. `cluster_networks`: as in an AllowList, which checks them."""
    plain = address.strip("[]").partition("%")[0]
    try:
        ipaddress.ip_address(plain)
    except ValueError:
        return f"{address[:100]!r} is no IP address"
    if is_refused(plain, LOCAL_NETWORKS):
        return f"{plain} is a loopback, link-local, multicast or metadata address"
    return f"{plain} is an address of the cluster" if is_refused(plain, cluster_networks) else ""


def _parse_hf(written: str, rest: str) -> ParsedUri:
    path, at, revision = rest.partition("@")
    segments = _segments(written, path)
    if not all(_REPOSITORY.fullmatch(segment) for segment in segments) or len(segments) not in {1, 2}:
        raise _wrong(written, "is not hf://org/name or hf://org/name@revision")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise _wrong(written, "names no branch, tag or commit after '@'")
    return ParsedUri("hf", "", segments, revision, f"hf://{'/'.join(segments)}{at}{revision}")


def _authority(written: str, scheme: str, authority: str) -> str:
    if scheme == "file":
        if authority:
            raise _wrong(written, f"names the host {authority!r}; write file:///path")
        return ""
    if scheme == "s3":
        if not _BUCKET.fullmatch(authority):
            raise _wrong(written, "names no bucket")
        return authority
    host, _, port = (
        authority.lower().rpartition(":") if re.search(r":\d*\Z", authority) else (authority.lower(), "", "")
    )
    if not _HOST.fullmatch(host) or ".." in host:
        raise _wrong(written, "names no host")
    if port and (not port.isdigit() or not 0 < int(port) < 65536):
        raise _wrong(written, f"has the port {port!r}")
    _check_host(written, host)
    return host if not port or port == _PORTS.get(scheme) else f"{host}:{int(port)}"


def _check_host(written: str, host: str) -> None:
    """What can be seen without asking a name server."""
    if host == "localhost" or host.endswith(".localhost"):
        raise _wrong(written, "names the node itself")
    # `2130706433`, `0x7f.1` and `0177.0.0.1` are 127.0.0.1 to some resolvers: only the plain spelling is an address.
    is_address = host.startswith("[") or _NUMERIC_HOST.fullmatch(host)
    if is_address and (reason := refused_address(host)):
        raise _wrong(written, f"can't be used: {reason}")


def _segments(written: str, path: str) -> tuple[str, ...]:
    path = path.removesuffix("/")
    if not path:
        return ()
    segments = tuple(path.split("/"))
    if any(segment in {"", ".", ".."} for segment in segments):
        raise _wrong(written, "has an empty, '.' or '..' segment")
    return segments


def _check_escapes(written: str) -> None:
    for match in _ESCAPE.finditer(written):
        byte = unquote_to_bytes(match[0])
        if match[1] is None or byte in b"./\\%?#" or byte < b"\x20" or byte == b"\x7f":
            raise _wrong(written, f"has the escape {written[match.start() : match.start() + 3]!r}; write it plainly")


def _below_a_root(uri: ParsedUri, roots: Iterable[str]) -> bool:
    return any(uri.segments[: len(segments)] == segments for segments in map(_root_segments, roots))


def _root_segments(root: str) -> tuple[str, ...]:
    return parse_uri("file://" + quote(root)).segments


def _covers(prefix: ParsedUri, uri: ParsedUri) -> bool:
    return (
        prefix.scheme == uri.scheme
        and prefix.authority == uri.authority
        and uri.segments[: len(prefix.segments)] == prefix.segments
        and prefix.revision in {"", uri.revision}
    )


def _wrong(uri: str, what: str) -> UsageError:
    return UsageError(f"{uri[:200]!r} {what}")
