"""What `warm` says: lines for people, JSON events for machines. The result is on standard output, the rest beside."""

from __future__ import annotations

from typing import Any, Final

import click

from cacheagent.cli.cluster.watchers import node_json, progress_json
from cacheagent.cli.output import print_json, size
from cacheagent.errors import CacheAgentError
from cacheagent.kube.ops.look import Seen
from cacheagent.kube.ops.progress import Progress, find_condition
from cacheagent.kube.ops.warmup import Wish
from cacheagent.kube.plan.facts import Facts
from cacheagent.kube.plan.times import written_time
from cacheagent.kube.plan.views import Model, Warmup

INTERRUPTED: Final = 130


class Telling:
    """One command's words. `is_json`: every one is an event, one object a line."""

    def __init__(self, *, is_json: bool) -> None:
        self._is_json = is_json

    def ordered(self, model: Model, wish: Wish, warmup: Warmup, digest: str, *, joined: bool) -> None:
        """`digest`: what is warmed, as far as that is known."""
        since = pinned_since(model) if digest else ""
        until = written_time(warmup.expires_at)
        if self._is_json:
            told: dict[str, Any] = {"model": model.name, "digest": digest, "pinned_since": since, "where": wish.where}
            ordered = {"warmup": warmup.meta.name, "until": until, "joined": joined}
            print_json({"event": "warming", **told, **ordered, "max_origin_bytes_per_s": wish.max_origin_rate})
            return
        version = (
            f"{digest[:19]} ({size(model.status.size_bytes)}, pinned since {since})"
            if digest
            else "what its source holds"
        )
        limit = f", at most {size(wish.max_origin_rate)}/s from the origin" if wish.max_origin_rate else ""
        click.echo(f"{model.name}: warming {version} on {wish.where}{limit}", err=True)
        how = "joined, it is there already" if joined else "made"
        click.echo(f"{model.name}: warm-up {warmup.meta.name} ({how}), until {until}", err=True)

    def looked(self, facts: Facts, seen: Seen) -> None:
        """One that has moved is an error, and told by whoever meets it."""
        pinned = facts.digest
        if self._is_json:
            moved = seen.digest != pinned if seen.digest else None
            told = {"model": facts.name, "pinned": pinned, "origin": seen.digest, "moved": moved, "why": seen.why}
            print_json({"event": "looked", **told})
        elif not seen.digest:
            click.echo(
                f"{facts.name}: nobody can say whether the origin has moved ({seen.why}); going on with {pinned[:19]}",
                err=True,
            )
        elif seen.digest == pinned:
            click.echo(f"{facts.name}: the origin holds {pinned[:19]}, as pinned", err=True)

    def refreshed(self, before: Model, after: Model) -> None:
        """What the origin holds now is pinned."""
        old, new = before.status.digest, after.status.digest
        moved = bool(old) and old != new
        if self._is_json:
            print_json({"event": "refreshed", "model": after.name, "before": old, "digest": new, "moved": moved})
        elif moved:
            click.echo(f"{after.name}: the origin has moved: {old[:19]} was pinned, {new[:19]} is now", err=True)
        else:
            click.echo(f"{after.name}: the origin holds {new[:19]}{', as before' if old else ''}", err=True)

    def ready(self, progress: Progress) -> None:
        """The result."""
        if self._is_json:
            missing = [node_json(node) for node in progress.missing]
            print_json({"event": "ready", **progress_json(progress), "missing": missing, "exit_code": 0})
            return
        for node in progress.missing:
            click.echo(f"{progress.model}: without {node.node}: {node.state}: {node.why}", err=True)
        click.echo(
            f"{progress.model}: {progress.digest} is verified and published on "
            f"{progress.ready} of {len(progress.nodes)} nodes"
        )

    def failed(self, error: CacheAgentError, model: str, progress: Progress | None) -> None:
        """The last event; `main` says the sentence."""
        if not self._is_json:
            return
        event = {1: "failed", 3: "timed-out", 4: "refused"}.get(error.exit_code, "failed")
        told = progress_json(progress) if progress is not None else {"model": model}
        missing = [node_json(node) for node in progress.missing] if progress is not None else []
        last = {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        print_json({"event": event, **told, "missing": missing, **last})

    def interrupted(self, name: str) -> None:
        """The warm-up of that name, if it was ordered, is the cluster's: it does not end with us."""
        if self._is_json:
            print_json({"event": "interrupted", "warmup": name, "exit_code": INTERRUPTED})
        if not name:
            click.echo("cacheagent: interrupted; nothing was ordered", err=True)
            return
        click.echo(f"cacheagent: interrupted; the warm-up {name} goes on", err=True)
        click.echo(f"  next: the same command joins it; kubectl get modelwarmup {name} -w watches it; "
                   f"kubectl delete modelwarmup {name} ends it", err=True)  # fmt: skip


def pinned_since(model: Model) -> str:
    """When its version was pinned (RFC 3339)."""
    state = find_condition(model.status.conditions, "Resolved")
    return state.last_transition_time if state is not None and state.status == "True" else ""
