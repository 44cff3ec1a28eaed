"""Which version of a model a volume gets, and what is to be said while it is not here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cacheagent.assignment import Assigned, Assignment, choose_version
from cacheagent.errors import CacheAgentError, NoRoom, NotCached, UsageError
from cacheagent.flights import Flights
from cacheagent.outlook import describe_wait
from cacheagent.spec import ModelSpec
from cacheagent.store import Promise, Record, Store


class Wait(NamedTuple):
    """Not ready. `error`: what to raise instead of the sentence when the time is over. `trouble`: the code of what is
    wrong, if something is."""

    message: str
    digest: str = ""
    error: CacheAgentError | None = None
    trouble: str = ""


class Versions:
    """What is assigned, what is here, what is on its way. `demand` as in `Volumes`."""

    def __init__(self, store: Store, flights: Flights, demand: Callable[[ModelSpec], float]) -> None:
        self.assignment = Assignment()
        self._store = store
        self._flights = flights
        self._demand = demand

    def current(self, assigned: Assigned, asked: str) -> str:
        """The version that the model means here: an older one that is asked for by its digest counts too, where the
        configuration file is the only authority."""
        spec = assigned.spec
        if spec.digest:
            return spec.digest
        record = self._store.record(asked) if asked else None
        is_ours = assigned.namespaces is None and not assigned.pending  # the controller's have a digest or wait for one
        if record is not None and is_ours and record.name == spec.name:
            return asked
        found = self._flights.find(spec)
        return found.digest if found is not None else ""

    def choose(self, known: Promise | None, assigned: Assigned, asked: str) -> str:
        """The version for a volume that asks for `asked` (empty: any); empty while it is unknown. It keeps what it was
        promised, unless that never came here and the model has moved on: nobody has seen it, and it would never come.

        Raises NotCached.
        """
        digest = known.digest if known is not None else ""
        if known is not None and known.exactly:
            choose_version(assigned, self.current(assigned, digest), digest)  # may it still?
        elif not digest or self._store.record(digest) is None:
            digest = choose_version(assigned, self.current(assigned, asked), asked)
        return digest

    def wait(self, promise: Promise, assigned: Assigned) -> Wait:
        """Have it fetched, and say how far it is."""
        if assigned.pending and promise.digest in {"", assigned.spec.digest}:
            return Wait(assigned.pending, trouble=assigned.trouble)
        if promise.digest and promise.digest != assigned.spec.digest and _is_old(promise, assigned):
            gone = NotCached(
                f"{promise.digest} of model {promise.model!r} is not on this node and is not fetched any more",
                hint="delete the pod: its replacement gets the current version",
            )
            return Wait(gone.message, promise.digest, gone)
        retry_in_s = self._demand(assigned.spec)
        jobs = self._flights.jobs()
        job = self._flights.job(assigned.spec)
        running = [other for other in jobs if not other.finished]
        sentence = describe_wait(job, retry_in_s, running)
        error = NoRoom(job.message, hint=job.hint) if job is not None and job.error == NoRoom.code else None
        trouble = job.error if job is not None and job.phase == "failed" else ""
        return Wait(sentence, promise.digest or (job.digest if job is not None else ""), error, trouble)


def _is_old(promise: Promise, assigned: Assigned) -> bool:
    """Whether the version is one that is only known, not fetched."""
    return bool(assigned.spec.digest) or promise.digest in assigned.versions


def require_view(record: Record, view: str) -> None:
    """Raises UsageError for a view that the version doesn't have."""
    if view == "hf" and not record.manifest.repo_id:
        raise UsageError(
            f"model {record.name!r} has no hf view: no repository id is known for it",
            hint="set the source's repoId (org/name), or use the view `files`",
        )
