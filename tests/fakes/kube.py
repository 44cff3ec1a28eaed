"""An API server in memory that keeps the promises a client may rely on; a suite runs on it and on the real one.

It has resource versions, generations, status subresources, finalizers, field ownership, conflicts, watches that resume
from any version in its history, and no schemas, permissions or other controllers. Beside the protocol `KubeApi` it has
a test's own means: `put` and `remove` (somebody else's hand), `fail_next`, `down`, `expire`, `end_watches`, `calls`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from cacheagent.kube.api import (
    EVENTS,
    LEASES,
    MODEL_CACHE_NODES,
    MODEL_CACHE_PEERS,
    MODEL_CACHES,
    MODEL_WARMUPS,
    NAMESPACES,
    NODES,
    PODS,
    WEBHOOKS,
    Answer,
    Keep,
    KubeConflict,
    KubeError,
    KubeExpired,
    KubeNotFound,
    KubeRefused,
    KubeUnavailable,
    Object,
    ObjectList,
    Patch,
    Resource,
    WatchEvent,
)
from tests.fakes.kube_rules import (
    Path,
    applied,
    copied,
    json_patched,
    leaves,
    matches_fields,
    matches_labels,
    merge_patched,
)

Verb = Literal["get", "list", "watch", "create", "replace", "patch", "apply", "delete"]
Key = tuple[str, str]
"""(namespace, name)."""

OURS: Final = frozenset({MODEL_CACHES, MODEL_CACHE_NODES, MODEL_CACHE_PEERS, MODEL_WARMUPS})
WITHOUT_STATUS: Final = frozenset({LEASES, EVENTS, WEBHOOKS, MODEL_CACHE_PEERS})
WITH_GENERATION: Final = OURS | {PODS, WEBHOOKS}
ONLY_CONDITIONAL: Final = OURS | {LEASES, WEBHOOKS}
"""Kinds whose whole replacement must name the version that it replaces."""
FIELDS: Final = {
    PODS: frozenset({"metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"}),
    EVENTS: frozenset({"metadata.name", "metadata.namespace", "involvedObject.name", "involvedObject.uid", "reason"}),
}
EVERY_KIND: Final = frozenset({"metadata.name", "metadata.namespace"})
SERVERS_OWN: Final = ("uid", "creationTimestamp", "generation", "selfLink", "deletionTimestamp", "managedFields")
"""Metadata that a client's write does not change."""


class Change(NamedTuple):
    """One line of the history."""

    version: int
    resource: Resource
    before: Object | None
    after: Object | None
    state: Object
    """What a watch shows: `after`, or the last state with the version of its removal."""


class Fault(NamedTuple):
    verb: Verb
    error: Exception
    resource: Resource | None


class FakeKube:
    """`KubeApi` in memory. One event loop; no method blocks, each gives way to other tasks once."""

    def __init__(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.calls: Counter[str] = Counter()
        self.calls_of: Counter[tuple[str, str]] = Counter()
        """By verb, and by (verb, plural)."""
        self._now = now
        self._objects: dict[Resource, dict[Key, Object]] = {}
        self._owners: dict[str, dict[tuple[str, str], set[Path]]] = {}
        """uid -> (manager, subresource) -> the fields of its last apply."""
        self._version = 1000
        self._forgotten = self._version
        self._history: list[Change] = []
        self._faults: list[Fault] = []
        self._watches: set[asyncio.Queue[Change | WatchEvent | Exception | None]] = set()
        self._watch_opened = asyncio.Event()
        self._down = False

    # --- a test's own hand

    def put(self, resource: Resource, body: Object) -> Object:
        """Make or change an object whole, status included, as if its own controller had."""
        body = copied(body)
        key = self._key(body["metadata"].get("namespace", ""), body["metadata"]["name"])
        before = self._objects.get(resource, {}).get(key)
        if before is None:
            return copied(self._made(resource, body, dry_run=False, keep_status=True))
        body["metadata"].pop("resourceVersion", None)
        return self._written(resource, before, body, status=True, spec=True)

    def remove(self, resource: Resource, name: str, *, namespace: str = "") -> None:
        """Take an object away at once, finalizers or not."""
        before = self._objects.get(resource, {}).get(self._key(namespace, name))
        if before is not None:
            self._dropped(resource, before)

    def peek(self, resource: Resource, name: str, *, namespace: str = "") -> Object | None:
        """A copy of an object as it is, or None. Not counted."""
        found = self._objects.get(resource, {}).get(self._key(namespace, name))
        return None if found is None else copied(found)

    def all(self, resource: Resource) -> list[Object]:
        """Copies of all objects of a kind. Not counted."""
        return [copied(item) for _, item in sorted(self._objects.get(resource, {}).items())]

    def fail_next(self, verb: Verb, error: Exception, *, times: int = 1, resource: Resource | None = None) -> None:
        """Let the next calls of a verb (of that kind) fail instead of doing anything."""
        self._faults += [Fault(verb, error, resource)] * times

    def set_down(self, down: bool) -> None:  # noqa: FBT001 - reads as what it says
        """Away: running watches break and every call fails, until it is back."""
        self._down = down
        if down:
            self._tell_watches(KubeUnavailable("the connection to the API server was lost"))

    def expire(self) -> None:
        """Forget the history: who watches, or resumes from a version known so far, meets KubeExpired."""
        self._version += 1
        self._forgotten = self._version
        self._history.clear()
        self._tell_watches(KubeExpired("too old resource version", status=410))

    def bookmark(self) -> None:
        """Tell every watch the present version."""
        self._tell_watches(self._bookmark())

    def end_watches(self) -> None:
        """End every watch in order, as the server does after some minutes: a bookmark, then the end."""
        self.bookmark()
        self._tell_watches(None)

    @property
    def watching(self) -> int:
        """Number of open watches."""
        return len(self._watches)

    async def watched(self, count: int = 1) -> None:
        """Return once so many watches are open."""
        while len(self._watches) < count:
            self._watch_opened.clear()
            await self._watch_opened.wait()

    # --- the protocol

    async def get(self, resource: Resource, name: str, *, namespace: str = "") -> Object:
        await self._asked("get", resource)
        return copied(self._present(resource, name, namespace))

    async def list(
        self, resource: Resource, *, namespace: str = "", fields: str = "", labels: str = "", keep: Keep | None = None
    ) -> ObjectList:
        await self._asked("list", resource)
        chosen = [
            copied(item) if keep is None else keep(copied(item))
            for key, item in sorted(self._objects.get(resource, {}).items())
            if _selected(resource, item, namespace, fields, labels)
        ]
        return ObjectList(chosen, str(self._version))

    async def watch(
        self, resource: Resource, resource_version: str, *, namespace: str = "", fields: str = "", labels: str = ""
    ) -> AsyncGenerator[WatchEvent, None]:
        await self._asked("watch", resource)
        queue: asyncio.Queue[Change | WatchEvent | Exception | None] = asyncio.Queue()
        if resource_version in {"", "0"}:
            for item in self._objects.get(resource, {}).values():
                if _selected(resource, item, namespace, fields, labels):
                    queue.put_nowait(WatchEvent("ADDED", item))
        elif int(resource_version) < self._forgotten:
            raise KubeExpired(f"too old resource version: {resource_version} ({self._forgotten})", status=410)
        else:
            for change in self._history:
                if change.version > int(resource_version):
                    queue.put_nowait(change)
        self._watches.add(queue)
        self._watch_opened.set()
        try:
            while (news := await queue.get()) is not None:
                if isinstance(news, Exception):
                    raise news
                if isinstance(news, WatchEvent):
                    yield WatchEvent(news.type, _bookmark_of(resource, news) or copied(news.object))
                elif (event := _event(news, resource, namespace, fields, labels)) is not None:
                    yield event
        finally:
            self._watches.discard(queue)

    async def create(self, resource: Resource, body: Object, *, namespace: str = "", dry_run: bool = False) -> Object:
        await self._asked("create", resource)
        body = copied(body)
        metadata = body.setdefault("metadata", {})
        if resource.namespaced:
            metadata.setdefault("namespace", namespace)
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        if self._key(metadata.get("namespace", ""), metadata["name"]) in self._objects.get(resource, {}):
            raise KubeConflict(f"{resource.plural} {metadata['name']!r} already exists", status=409)
        return copied(self._made(resource, body, dry_run=dry_run, keep_status=resource is NODES))

    async def replace(self, resource: Resource, body: Object, *, namespace: str = "", subresource: str = "") -> Object:
        await self._asked("replace", resource)
        before = self._present(resource, body["metadata"]["name"], namespace or body["metadata"].get("namespace", ""))
        if resource in ONLY_CONDITIONAL and not body["metadata"].get("resourceVersion"):
            raise KubeRefused("metadata.resourceVersion: Invalid value: 0: must be specified for an update", status=422)
        return self._update(resource, before, copied(body), subresource)

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Patch,
        *,
        namespace: str = "",
        subresource: str = "",
    ) -> Object:
        await self._asked("patch", resource)
        before = self._present(resource, name, namespace)
        after = json_patched(before, body) if isinstance(body, list) else merge_patched(copied(before), copied(body))
        if after["metadata"].get("uid") != before["metadata"]["uid"]:
            raise KubeRefused("metadata.uid: Invalid value: field is immutable", status=422)
        if isinstance(body, list) or "resourceVersion" not in body.get("metadata", {}):
            after["metadata"].pop("resourceVersion", None)  # unconditional
        return self._update(resource, before, after, subresource)

    async def apply(
        self,
        resource: Resource,
        body: Object,
        *,
        manager: str,
        namespace: str = "",
        subresource: str = "",
        answer: Answer = "object",
    ) -> Object:
        await self._asked("apply", resource)
        body = copied(body)
        metadata = body.pop("metadata")
        namespace = namespace or metadata.pop("namespace", "")
        name, version = metadata.pop("name"), metadata.pop("resourceVersion", "")
        key = self._key(namespace, name)
        wanted: Object = {"status": body.get("status", {})} if subresource else {"metadata": metadata, **body}
        wanted = {k: v for k, v in wanted.items() if k not in {"apiVersion", "kind"} and v}
        if not subresource and resource not in WITHOUT_STATUS:
            wanted.pop("status", None)
        before = self._objects.get(resource, {}).get(key)
        if before is None and (subresource or version):
            raise KubeNotFound(f"{resource.plural} {name!r} not found", status=404)
        fields = {path for path, _ in leaves(wanted)}
        if before is None:
            whole = {"apiVersion": resource.api_version, "kind": resource.kind, **wanted}
            whole["metadata"] = {**wanted.get("metadata", {}), "name": name}
            if resource.namespaced:
                whole["metadata"]["namespace"] = namespace
            after = copied(self._made(resource, whole, dry_run=False, keep_status=False))
            self._owners.setdefault(after["metadata"]["uid"], {})[manager, subresource] = fields
            return _answered(after, answer)
        owners = self._owners.setdefault(before["metadata"]["uid"], {})
        others = set[Path]().union(*(owned for who, owned in owners.items() if who != (manager, subresource)))
        after = applied(before, wanted, owners.get((manager, subresource), set()) - fields - others)
        after["metadata"]["resourceVersion"] = version
        result = self._update(resource, before, after, subresource)
        owners[manager, subresource] = fields
        return _answered(result, answer)

    async def delete(self, resource: Resource, name: str, *, namespace: str = "", uid: str = "") -> None:
        await self._asked("delete", resource)
        before = self._objects.get(resource, {}).get(self._key(namespace, name))
        if before is None:
            return
        if uid and before["metadata"]["uid"] != uid:
            raise KubeConflict(f"the UID in the precondition ({uid}) does not match that of {name!r}", status=409)
        self._deleted(resource, before)

    # --- how an object is written

    async def _asked(self, verb: Verb, resource: Resource) -> None:
        self.calls[verb] += 1
        self.calls_of[verb, resource.plural] += 1
        await asyncio.sleep(0)
        if self._down:
            raise KubeUnavailable("the API server does not answer")
        for fault in self._faults:
            if fault.verb == verb and fault.resource in {None, resource}:
                self._faults.remove(fault)
                raise fault.error

    def _present(self, resource: Resource, name: str, namespace: str) -> Object:
        found = self._objects.get(resource, {}).get(self._key(namespace, name))
        if found is None:
            raise KubeNotFound(f"{resource.plural} {name!r} not found", status=404)
        return found

    def _made(self, resource: Resource, body: Object, *, dry_run: bool, keep_status: bool) -> Object:
        metadata = {k: v for k, v in body["metadata"].items() if k not in {*SERVERS_OWN, "resourceVersion"}}
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": self._time()}
        if resource in WITH_GENERATION:
            metadata["generation"] = 1
        made = {"apiVersion": resource.api_version, "kind": resource.kind, **body, "metadata": metadata}
        if resource not in WITHOUT_STATUS and not keep_status:
            made.pop("status", None)
            if resource == PODS:
                made["status"] = {"phase": "Pending"}
            elif resource == NAMESPACES:
                made["status"] = {"phase": "Active"}
        if dry_run:
            return made
        return self._stored(resource, None, made)

    def _update(self, resource: Resource, before: Object, after: Object, subresource: str) -> Object:
        if subresource and (subresource != "status" or resource in WITHOUT_STATUS):
            raise KubeNotFound(f"{resource.plural} have no subresource {subresource!r}", status=404)
        wanted, found = after["metadata"].get("resourceVersion"), before["metadata"]["resourceVersion"]
        if wanted and wanted != found:
            raise KubeConflict("the object has been modified; apply your changes to the latest version", status=409)
        if (uid := after["metadata"].get("uid")) and uid != before["metadata"]["uid"]:
            raise KubeConflict(f"Precondition failed: UID in precondition: {uid}", status=409)
        whole = resource in WITHOUT_STATUS
        return self._written(resource, before, after, status=whole or bool(subresource), spec=not subresource)

    def _written(self, resource: Resource, before: Object, after: Object, *, status: bool, spec: bool) -> Object:
        """Store what of `after` this door may change; nothing happens where nothing changes."""
        chosen = {**(after if spec else before)}
        chosen.pop("status", None)
        if (shown := (after if status else before).get("status")) is not None:
            chosen["status"] = shown
        metadata = dict((after if spec else before)["metadata"])
        for name in SERVERS_OWN:
            metadata.pop(name, None)
            if name in before["metadata"]:
                metadata[name] = before["metadata"][name]
        metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
        metadata = {k: v for k, v in metadata.items() if v not in ({}, [])}
        chosen |= {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        if copied(chosen) == before:
            return copied(before)
        if resource in WITH_GENERATION and _content(chosen) != _content(before):
            metadata["generation"] = before["metadata"]["generation"] + 1
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self._dropped(resource, before)
            return copied(chosen)
        self._disown(before, chosen)
        return copied(self._stored(resource, before, chosen))

    def _disown(self, before: Object, after: Object) -> None:
        """Fields that changed are no longer those of earlier appliers; an apply claims its own afterwards."""
        old, new = dict(leaves(before)), dict(leaves(after))
        changed = {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
        for owned in self._owners.get(before["metadata"]["uid"], {}).values():
            owned.difference_update(changed)

    def _deleted(self, resource: Resource, before: Object) -> None:
        if not before["metadata"].get("finalizers"):
            self._dropped(resource, before)
        elif "deletionTimestamp" not in before["metadata"]:
            after = copied(before)
            after["metadata"] |= {"deletionTimestamp": self._time(), "deletionGracePeriodSeconds": 0}
            if "generation" in after["metadata"]:
                after["metadata"]["generation"] += 1
            self._stored(resource, before, after)

    def _stored(self, resource: Resource, before: Object | None, after: Object) -> Object:
        after = copied(after)
        self._version += 1
        after["metadata"]["resourceVersion"] = str(self._version)
        self._objects.setdefault(resource, {})[_key_of(after)] = after
        self._tell(Change(self._version, resource, before, after, after))
        return after

    def _dropped(self, resource: Resource, before: Object) -> None:
        del self._objects[resource][_key_of(before)]
        self._owners.pop(before["metadata"]["uid"], None)
        self._version += 1
        last = copied(before)
        last["metadata"]["resourceVersion"] = str(self._version)
        self._tell(Change(self._version, resource, before, None, last))
        self._collect(before["metadata"]["uid"])

    def _collect(self, owner: str) -> None:
        """Delete those whose last owner went. The real collector does it a moment later."""
        alive = {item["metadata"]["uid"] for items in self._objects.values() for item in items.values()}
        for resource, items in list(self._objects.items()):
            for item in list(items.values()):
                owners = {reference["uid"] for reference in item["metadata"].get("ownerReferences", [])}
                if owner in owners and not owners & alive:
                    self._deleted(resource, item)

    def _tell(self, change: Change) -> None:
        self._history.append(change)
        self._tell_watches(change)

    def _tell_watches(self, news: Change | WatchEvent | Exception | None) -> None:
        for queue in self._watches:
            queue.put_nowait(news)

    def _bookmark(self) -> WatchEvent:
        return WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": str(self._version)}})

    def _time(self) -> str:
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @staticmethod
    def _key(namespace: str, name: str) -> Key:
        return namespace, name


def _key_of(item: Object) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _content(item: Object) -> Object:
    return {key: value for key, value in item.items() if key not in {"metadata", "status"}}


def _selected(resource: Resource, item: Object, namespace: str, fields: str, labels: str) -> bool:
    if namespace and item["metadata"].get("namespace") != namespace:
        return False
    return matches_fields(fields, item, FIELDS.get(resource, EVERY_KIND)) and matches_labels(
        labels, item["metadata"].get("labels", {})
    )


def _bookmark_of(resource: Resource, event: WatchEvent) -> Object | None:
    if event.type != "BOOKMARK":
        return None
    return {"apiVersion": resource.api_version, "kind": resource.kind, **copied(event.object)}


def _answered(item: Object, answer: Answer) -> Object:
    if answer == "object":
        return item
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def _event(change: Change, resource: Resource, namespace: str, fields: str, labels: str) -> WatchEvent | None:
    """What a watch with selectors shows of a change: an object that no longer matches is DELETED for it."""
    if change.resource != resource:
        return None
    before, after = (
        item is not None and _selected(resource, item, namespace, fields, labels)
        for item in (change.before, change.after)
    )
    if not before and not after:
        return None
    if before and after:
        return WatchEvent("MODIFIED", copied(change.state))
    if after:
        return WatchEvent("ADDED", copied(change.state))
    last = copied(change.before or {})
    last["metadata"]["resourceVersion"] = str(change.version)
    return WatchEvent("DELETED", last)


def names(items: Iterable[Object]) -> list[str]:
    """Their names, for short assertions."""
    return [item["metadata"]["name"] for item in items]


def error_of(status: int, message: str = "made up") -> KubeError:
    """The error that a client makes of an HTTP status."""
    kinds: dict[int, Any] = {404: KubeNotFound, 409: KubeConflict, 410: KubeExpired, 400: KubeRefused, 403: KubeRefused}
    error: KubeError = kinds.get(status, KubeRefused if status == 422 else KubeUnavailable)(message, status=status)
    return error
