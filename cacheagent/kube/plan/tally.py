"""How far a version is on the nodes that shall have it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cacheagent.kube.objects import NodeCounts, NodeModelStatus
from cacheagent.kube.plan.views import CacheNode


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How the nodes of a model are as to one version (`digest`). `fraction`: of all bytes on all nodes. `worst`: node
    and sentence of the one that is furthest behind; `failed` likewise of one that failed, with its error's code.
    `contents`: what the files' own hashes come to, and a node that says so: more than one is somebody's wrong bytes."""

    digest: str
    counts: NodeCounts
    fraction: float = 0.0
    worst: tuple[str, str] | None = None
    failed: tuple[str, str, str] | None = None
    contents: Mapping[str, str] = field(default_factory=dict)

    @property
    def percent(self) -> str:
        """`37 %`; never all of it while something is missing."""
        return f"{int(min(self.fraction, 0.99) * 100)} %"

    @property
    def text(self) -> str:
        """`1/2 nodes`."""
        return f"{self.counts.ready}/{self.counts.assigned} node{'s' if self.counts.assigned != 1 else ''}"


def tally(name: str, digest: str, nodes: Sequence[CacheNode], agents: frozenset[str]) -> Tally:
    """Count them."""
    ready = downloading = failed = 0
    parts, worst, failure = 0.0, None, None
    contents: dict[str, str] = {}
    worst_rank: tuple[int, float] = (9, 2.0)
    for node in nodes:
        if digest and digest in node.ready:
            ready += 1
            if (content := node.contents.get(digest)) is not None:
                contents.setdefault(content, node.name)
            continue
        entry = _entry(node, name, digest)
        rank, part, sentence = _behind(node, entry, agents)
        parts += part
        if rank == 0:
            failed += 1
            failure = failure or (node.name, sentence, (entry.code if entry else "") or "corrupt")
        elif entry is not None and entry.phase in {"fetching", "resolving"}:
            downloading += 1
        if (rank, part) < worst_rank:
            worst_rank, worst = (rank, part), (node.name, sentence)
    counts = NodeCounts(assigned=len(nodes), ready=ready, downloading=downloading, failed=failed)
    fraction = (ready + parts) / len(nodes) if nodes else 0.0
    return Tally(digest=digest, counts=counts, fraction=fraction, worst=worst, failed=failure, contents=contents)


def _entry(node: CacheNode, name: str, digest: str) -> NodeModelStatus | None:
    """What it says of this version, else of the model before it knew a version."""
    entries = node.entries.get(name, ())
    return next((each for each in entries if each.digest == digest), None) or next(
        (each for each in entries if not each.digest), None
    )


def _behind(node: CacheNode, entry: NodeModelStatus | None, agents: frozenset[str]) -> tuple[int, float, str]:
    """How far behind (less is further), the part that is there, and a sentence."""
    part = entry.bytes_done / entry.size_bytes if entry and entry.size_bytes else 0.0
    if entry is not None and entry.phase == "failed":
        return 0, part, entry.message or entry.code or "failed"
    if entry is not None and entry.phase == "ready":
        return 0, part, f"withdrawn: {entry.message}"
    if node.name not in agents:
        return 1, part, "its agent is not ready"
    if entry is None:
        return 2, part, "has not begun"
    return 3, part, entry.message or (f"{entry.phase}, {part:.0%}" if part else entry.phase)
