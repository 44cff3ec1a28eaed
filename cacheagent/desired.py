"""What this node is to have: its configuration file's models and, in a cluster, the controller's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Final

from cacheagent.assignment import Assigned, Assignment
from cacheagent.spec import ModelSpec, SourceSpec
from cacheagent.volumes import Volumes
from cacheagent.warming import Warming

LOG: Final = logging.getLogger(__name__)


class Desired:
    """One event loop. Where both name a model, the controller's holds: it says who may mount it."""

    def __init__(self, warming: Warming, volumes: Volumes) -> None:
        self._warming = warming
        self._volumes = volumes
        self._configured: tuple[ModelSpec, ...] = ()
        self._assignment = Assignment()

    def model(self, name: str) -> ModelSpec | None:
        """The model of that name."""
        assigned = self._all().find(name)
        return assigned.spec if assigned is not None else None

    def sources(self) -> Iterator[SourceSpec]:
        """Where all of them come from."""
        return (assigned.spec.source for assigned in self._all().models)

    def configure(self, specs: Sequence[ModelSpec]) -> None:
        """The configuration file was read; whatever failed is tried again at once."""
        self._configured = tuple(specs)
        self._put_into_force(afresh=True)

    def assign(self, assignment: Assignment) -> None:
        """The controller has decided."""
        self._assignment = assignment
        self._put_into_force(afresh=False)

    def _all(self) -> Assignment:
        names = {assigned.spec.name for assigned in self._assignment.models}
        own = [Assigned(spec=spec) for spec in self._configured if spec.name not in names]
        return Assignment(
            models=(*self._assignment.models, *own),
            refusals=self._assignment.refusals,
            open_ended=self._assignment.open_ended,
        )

    def _put_into_force(self, *, afresh: bool) -> None:
        everything = self._all()
        specs = [assigned.spec for assigned in everything.models if not assigned.pending]
        self._warming.want(specs, afresh=afresh)
        self._volumes.assign(everything)
