"""What a person asks for: a source and the policy that goes with it. Values; parsed strictly at the border."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cacheagent.errors import UsageError
from cacheagent.model import Kind, Value

ModelName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\\Z")]
"""A DNS label: what Kubernetes, labels and paths all take. Checked where a value is parsed."""

Digest = Annotated[str, msgspec.Meta(pattern="^(sha256:[0-9a-f]{64})?\\Z")]
"""A digest or nothing."""


class SourceSpec(Value):
    """Where a model comes from, as a person writes it.

    `uri`: `s3://bucket/prefix`, `hf://org/name[@revision]`, `https://host/path/`, `file:///path`,
    `nfs://server/export/path`. `revision`: branch, tag or commit (hf). `endpoint`: S3 endpoint or Hub mirror URL.
    `region`: of the S3 bucket. `credential`: the *name* of a credential (AWS profile, or a token file's name), never a
    secret; part of the trust domain. `ca_bundle`: PEM file for private CAs. `path_style`: None lets the source choose.
    `include`/`exclude`: patterns on paths (see `cacheagent.select`). `roots`: directories of which one must hold the
    tree of a `file://` source, links resolved; empty for anywhere. `refused_networks`: CIDRs
    of addresses that an `https://` source is not read from, after name resolution, also where it redirects to.
    `plain_path`: no symbolic link may lead to the tree of a `file://` or `nfs://` source from its root or mount:
    whoever may write there could point one at what a prefix of the URI does not permit.

    Both URLs are shown in states, logs and records, so one that holds a secret is refused: UsageError.
    """

    uri: str
    revision: str = ""
    endpoint: str = ""
    region: str = ""
    credential: str = ""
    ca_bundle: str = ""
    path_style: bool | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    refused_networks: tuple[str, ...] = ()
    plain_path: bool = False

    def __post_init__(self) -> None:
        for field, url in (("uri", self.uri), ("endpoint", self.endpoint)):
            if _may_hold_secret(url):
                raise UsageError(
                    f"the source's {field} holds a user, a password or a query",
                    hint="name a credential instead; signed URLs are not sources",
                )


def _may_hold_secret(url: str) -> bool:
    """In an S3 key or a file's path, `?` and `#` are letters like any other."""
    scheme, separator, rest = url.partition("://")
    authority, _, _ = rest.partition("/")
    is_web = scheme.lower() in {"http", "https"}
    return bool(separator) and ("@" in authority or (is_web and ("?" in rest or "#" in rest)))


class Policy(Value):
    """What a model may contain. `allow_pickle`: accept `.bin .pt .pth .ckpt .pkl` although unpickling runs code."""

    allow_pickle: bool = False


class ModelSpec(Value):
    """One model: a source plus policy. `name`: a DNS label of at most 63 characters. `priority`: larger is fetched
    first and evicted last. `pin`: never evicted. `repo_id`: `org/name` for the `hf` view of sources that are not the
    Hub. `keep_warm`: the agent fetches it by itself and fetches it again if it goes. `digest`: accept this version
    only (`sha256:` and 64 hex digits); empty for whatever the source holds. `content_digest`: what the hashes of all
    files must come to (`cacheagent.store.record.content_digest`); empty for no such demand. `peers`: `never` fetches
    it from its source alone.
    """

    name: ModelName
    source: SourceSpec
    kind: Kind = "checkpoint"
    policy: Policy = Policy()
    priority: int = 0
    pin: bool = False
    repo_id: str = ""
    keep_warm: bool = True
    digest: Digest = ""
    content_digest: Digest = ""
    peers: Literal["auto", "never"] = "auto"
