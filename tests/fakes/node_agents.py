"""Agents as the controller sees them: each reads its ModelCacheNode's spec and says in the status what it made of
it."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from cacheagent.kube.api import Object
from cacheagent.kube.objects import (
    ModelCacheNodeSpec,
    ModelCacheNodeStatus,
    NodeModel,
    NodeModelStatus,
    NodeUsage,
    Phase,
    Wanted,
)

SIZE = 1000


def digest_of(text: str) -> str:
    """A digest that a person recognises in a failure: `digest_of("a1")` begins with `a1`."""
    return "sha256:" + (text + "0" * 64)[:64]


@dataclass
class Origins:
    """What is where. `digests`: by URI. `errors`: codes of what goes wrong instead, by URI or by (node, URI)."""

    digests: dict[str, str] = field(default_factory=dict)
    errors: dict[str | tuple[str, str], str] = field(default_factory=dict)

    def error(self, node: str, uri: str) -> str:
        """The code, or nothing."""
        return self.errors.get((node, uri)) or self.errors.get(uri, "")


@dataclass
class NodeAgent:
    """One node. A fetch takes `slowness` reports. `disk`: digests and the names that they came by. `mounted`: by
    name."""

    name: str
    origins: Origins
    slowness: int = 0
    incarnation: str = "first"
    disk: dict[str, str] = field(default_factory=dict)
    mounted: dict[str, int] = field(default_factory=dict)
    wanted: list[Wanted] = field(default_factory=list)
    evicting: list[str] = field(default_factory=list)
    fetching: dict[str, int] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    public_key: str = ""
    peer_address: str = ""
    withdrawn: dict[str, str] = field(default_factory=dict)
    resolved: list[str] = field(default_factory=list)
    """Tokens that were asked of this node, for tests."""

    def respond(self, item: Object, at: str) -> Object:
        """The status after reading this object."""
        spec = msgspec.convert(item.get("spec") or {}, ModelCacheNodeSpec)
        entries = [entry for model in spec.models for entry in self._entries(model)]
        said = {entry.digest for entry in entries}
        entries += [self._ready(name, digest) for digest, name in self.disk.items() if digest not in said]
        assigned = {model.name for model in spec.models}
        status = ModelCacheNodeStatus(
            observed_generation=item["metadata"]["generation"],
            agent_version="1.0",
            incarnation=self.incarnation,
            reported_at=at,
            usage=NodeUsage(capacity_bytes=10**12, free_bytes=10**11),
            models=tuple(entries),
            wanted=tuple(each for each in self.wanted if each.uri or each.model not in assigned),
            evicting=tuple(digest for digest in self.evicting if digest in self.disk),
            public_key=self.public_key,
            peer_address=self.peer_address,
        )
        written: Object = msgspec.to_builtins(status)
        return written

    def evict(self, held: list[str]) -> None:
        """What it would like to be rid of and may be."""
        for digest in self.evicting:
            if digest not in held:
                self.disk.pop(digest, None)

    def wipe(self, incarnation: str) -> None:
        """A new disk."""
        self.disk, self.fetching, self.incarnation = {}, {}, incarnation

    def _entries(self, model: NodeModel) -> list[NodeModelStatus]:
        entries = []
        if model.resolve:
            if not self.resolved or self.resolved[-1] != model.resolve:
                self.resolved.append(model.resolve)
            error = self.origins.error(self.name, model.source.uri)
            found = self.origins.digests.get(model.source.uri, "")
            if error or not found:
                entries.append(self._failed(model.name, "", error or "not-found"))
            elif found != model.digest:
                phase: Phase = "ready" if found in self.disk else "pending"
                entries.append(self._entry(model.name, phase, found, token=model.resolve))
        if model.digest:
            found = self.origins.digests.get(model.source.uri, "")
            is_asked = found == model.digest and not self.origins.error(self.name, model.source.uri)
            token = model.resolve if is_asked else ""
            entries.append(self._fetched(model, token))
        if not entries:
            entries.append(NodeModelStatus(name=model.name, phase="pending"))
        return entries

    def _fetched(self, model: NodeModel, token: str) -> NodeModelStatus:
        digest = model.digest
        if digest in self.disk:
            return self._ready(model.name, digest, token)
        if error := self.origins.error(self.name, model.source.uri):
            return self._failed(model.name, digest, error)
        if self.origins.digests.get(model.source.uri) != digest:
            return self._failed(model.name, digest, "source-changed")
        done = self.fetching[digest] = self.fetching.get(digest, 0) + 1
        if done > self.slowness:
            del self.fetching[digest]
            self.disk[digest] = model.name
            return self._ready(model.name, digest, token)
        part = SIZE * done // (self.slowness + 1)
        return self._entry(model.name, "fetching", digest, token=token, bytes_done=part)

    def _ready(self, name: str, digest: str, token: str = "") -> NodeModelStatus:
        return self._entry(name, "ready", digest, token=token, bytes_done=SIZE, mounted=self.mounted.get(name, 0))

    def _entry(
        self, name: str, phase: Phase, digest: str, *, token: str = "", bytes_done: int = 0, mounted: int = 0
    ) -> NodeModelStatus:
        return NodeModelStatus(
            name=name,
            phase=phase,
            digest=digest,
            resolved_for=token,
            revision=f"rev-{digest[7:11]}",
            content_digest=self.contents.get(digest, "") if phase == "ready" else "",
            message=self.withdrawn.get(digest, "") if phase == "ready" else "",
            files=3,
            size_bytes=SIZE,
            bytes_done=bytes_done,
            mounted=mounted,
        )

    def _failed(self, name: str, digest: str, code: str) -> NodeModelStatus:
        return NodeModelStatus(name=name, phase="failed", digest=digest, code=code, message=f"it says {code}")
