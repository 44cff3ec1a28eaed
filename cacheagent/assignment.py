"""What this node is to have, and who may mount it. Values and rules; pure.

A node without a cluster has the models of its configuration file, for everybody. In a cluster the controller's
assignment comes in addition: with the namespaces that may mount each model, and with answers to what was asked for.
"""

from __future__ import annotations

from cacheagent.errors import NotCached, PolicyRefused
from cacheagent.model import Value
from cacheagent.spec import ModelSpec


class Assigned(Value):
    """One model. `spec.digest`: the current version where the controller says which; else whatever the source held when
    it was asked. `namespaces`: who may mount it; None for everybody. `versions`: older digests that may still be
    mounted while they are here. `pending`: why it can't be fetched yet, a sentence; empty when it can. `trouble`: the
    code of the error that it comes from, if it does. `max_origin_bytes_per_s`: how fast it may be fetched while no pod
    waits for it; 0 for no limit. `uri`: what an on-demand request may name instead, in its one spelling.
    """

    spec: ModelSpec
    uri: str = ""
    namespaces: tuple[str, ...] | None = None
    versions: tuple[str, ...] = ()
    page_cache: bool = False
    max_origin_bytes_per_s: int = 0
    pending: str = ""
    trouble: str = ""

    def permits(self, namespace: str) -> bool:
        """Whether pods of that namespace may mount it."""
        return self.namespaces is None or namespace in self.namespaces


class Reason(Value):
    """An error as a value: the code of one in `cacheagent.errors`, and its words."""

    code: str
    message: str
    hint: str = ""


class Refused(Value):
    """Somebody asked for a model that is not assigned, and the controller says no."""

    model: str
    namespace: str
    error: Reason


class Assignment(Value):
    """Everything. `open_ended`: what is not here may be asked for, and somebody will assign it or refuse."""

    models: tuple[Assigned, ...] = ()
    refusals: tuple[Refused, ...] = ()
    open_ended: bool = False

    def find(self, model: str) -> Assigned | None:
        """The model of that name; an assigned one goes before one of the configuration file."""
        return next((assigned for assigned in self.models if assigned.spec.name == model), None)


class Asking(Value):
    """What a volume asks for: a model by name, by an on-demand `uri` in its one spelling, or by nothing but its
    `digest`; and for which namespace."""

    namespace: str
    model: str = ""
    uri: str = ""
    digest: str = ""

    @property
    def named(self) -> str:
        """What a refusal calls it."""
        return self.model or self.uri


def permit(assignment: Assignment, asking: Asking) -> Assigned | Reason | None:
    """The model if this namespace may mount it; a Reason if the controller has refused; None if it may be asked.

    Raises NotCached for a model that nobody can assign, PolicyRefused for a namespace that may not mount it.
    """
    if not asking.named:
        return _permit_digest(assignment, asking)
    assigned = assignment.find(asking.model) if asking.model else _of_uri(assignment, asking)
    if assigned is not None:
        if not assigned.permits(asking.namespace):
            raise _not_permitted(assigned.spec.name, asking.namespace)
        return assigned
    for refused in assignment.refusals:
        if (refused.model, refused.namespace) == (asking.named, asking.namespace):
            return refused.error
    if assignment.open_ended:
        return None
    if asking.uri:
        raise PolicyRefused("no model can be asked for by its URI here", hint="that needs a cluster; name a model")
    raise NotCached(
        f"no model {asking.model!r} is configured on this node", hint="`cacheagent status` lists those that are"
    )


def _of_uri(assignment: Assignment, asking: Asking) -> Assigned | None:
    """One that this namespace may not mount is none: another rule may permit the same URI with another credential."""
    return next(
        (
            assigned
            for assigned in assignment.models
            if assigned.uri == asking.uri and assigned.namespaces is not None and assigned.permits(asking.namespace)
        ),
        None,
    )


def _permit_digest(assignment: Assignment, asking: Asking) -> Assigned:
    found = [each for each in assignment.models if asking.digest in {each.spec.digest, *each.versions}]
    for assigned in found:
        if assigned.permits(asking.namespace):
            return assigned
    if found:
        raise _not_permitted(found[0].spec.name, asking.namespace)
    raise NotCached(
        f"{asking.digest} is the version of no model of this node",
        hint="name the model, too; `kubectl get modelcache -o wide` shows names and versions",
    )


def _not_permitted(model: str, namespace: str) -> PolicyRefused:
    return PolicyRefused(
        f"namespace {namespace!r} may not mount model {model!r}",
        hint=f"ask whoever owns ModelCache {model} to add it to spec.allowedNamespaces",
    )


def choose_version(assigned: Assigned, current: str, asked: str) -> str:
    """The digest that a volume gets: the one it asks for if that is one of this model, else the current one; empty
    while that is unknown. `current`: the version that the model means here now. Raises NotCached.
    """
    if not asked or asked == current:
        return current
    if asked == assigned.spec.digest or asked in assigned.versions:
        return asked
    now = f"it is now {current}" if current else "its version is not known yet"
    raise NotCached(
        f"{asked} is no version of model {assigned.spec.name!r} that this node may mount: {now}",
        hint="delete the pod: its replacement gets the current version",
    )
