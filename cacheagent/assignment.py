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
    mounted while they are here. `pending`: why it can't be fetched yet, a sentence; empty when it can.
    """

    spec: ModelSpec
    namespaces: tuple[str, ...] | None = None
    versions: tuple[str, ...] = ()
    page_cache: bool = False
    pending: str = ""


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


def permit(assignment: Assignment, *, model: str, namespace: str) -> Assigned | Reason | None:
    """The model if this namespace may mount it; a Reason if the controller has refused; None if it may be asked.

    Raises NotCached for a model that nobody can assign, PolicyRefused for a namespace that may not mount it.
    """
    assigned = assignment.find(model)
    if assigned is not None:
        if assigned.namespaces is not None and namespace not in assigned.namespaces:
            raise PolicyRefused(
                f"namespace {namespace!r} may not mount model {model!r}",
                hint=f"ask whoever owns ModelCache {model} to add it to spec.allowedNamespaces",
            )
        return assigned
    if not assignment.open_ended:
        raise NotCached(
            f"no model {model!r} is configured on this node", hint="`cacheagent status` lists those that are"
        )
    for refused in assignment.refusals:
        if (refused.model, refused.namespace) == (model, namespace):
            return refused.error
    return None


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
