"""What is asked for a volume, and what is promised for it. Pure."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from cacheagent.api.schema import VolumeRequest
from cacheagent.assignment import Assigned
from cacheagent.errors import UsageError
from cacheagent.store import Promise


def check_request(request: VolumeRequest, spell: Callable[[str], str]) -> VolumeRequest:
    """The request, with its URI in its one spelling. Raises UsageError for one that names no model, or two."""
    if request.uri and request.model:
        raise UsageError("a volume has both model and uri", hint="keep one of them")
    if not (request.uri or request.model or request.digest):
        raise UsageError("a volume names no model", hint="`model` is the name of a ModelCache")
    return replace(request, uri=spell(request.uri)) if request.uri else request


def promise_of(volume_id: str, request: VolumeRequest, assigned: Assigned, since: float) -> Promise:
    """A promise of no version yet. `since`: seconds since the epoch."""
    return Promise(
        volume_id=volume_id,
        model=assigned.spec.name,
        namespace=request.namespace,
        since=since,
        uri=request.uri,
        exactly=bool(request.digest),
        owner=f"{request.namespace}/{request.pod}" if request.pod else request.namespace,
        view=request.view,
        later=request.wait == "init",
        page_cache=request.page_cache or assigned.page_cache,
        pod_uid=request.pod_uid,
    )
