"""What the program needs of a Kubernetes API server: raw JSON objects, few verbs, errors by what to do next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, Literal, NamedTuple, Protocol

from cacheagent.errors import CacheAgentError
from cacheagent.kube.names import GROUP, VERSION

Object = dict[str, Any]
"""One object as the API server sent it; typed models would drop the fields that they don't know."""

Keep = Callable[[Object], Object]
"""What of an object is worth its memory. It gets an object of its own, which it may change."""

Patch = Object | list[Object]
"""A merge patch (a dict) or a JSON patch (a list)."""


Answer = Literal["object", "metadata"]
"""What a write answers with: the object as it is now, or its `metadata` alone, which is a fraction of a large one."""


class Resource(NamedTuple):
    """One kind of object. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """As in an object's `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version


MODEL_CACHES: Final = Resource(GROUP, VERSION, "modelcaches", "ModelCache", namespaced=False)
MODEL_CACHE_NODES: Final = Resource(GROUP, VERSION, "modelcachenodes", "ModelCacheNode", namespaced=False)
MODEL_CACHE_PEERS: Final = Resource(GROUP, VERSION, "modelcachepeers", "ModelCachePeers", namespaced=False)
MODEL_WARMUPS: Final = Resource(GROUP, VERSION, "modelwarmups", "ModelWarmup", namespaced=False)
NODES: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
PODS: Final = Resource("", "v1", "pods", "Pod", namespaced=True)
EVENTS: Final = Resource("", "v1", "events", "Event", namespaced=True)
SECRETS: Final = Resource("", "v1", "secrets", "Secret", namespaced=True)
VOLUMES: Final = Resource("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False)
CLAIMS: Final = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", namespaced=True)
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease", namespaced=True)
WEBHOOKS: Final = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration",
    namespaced=False,
)


class KubeError(CacheAgentError):
    """The API server did not do what was asked. `status`: the HTTP status, 0 when there was no answer."""

    code = "kubernetes"

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class KubeNotFound(KubeError):
    """There is no such object (404)."""

    code = "kubernetes-not-found"


class KubeConflict(KubeError):
    """Somebody else changed or made it meanwhile (409): read again, decide again."""

    code = "kubernetes-conflict"


class KubeRefused(KubeError):
    """Not permitted (401, 403), or refused by a schema or a rule (400, 422): asking again changes nothing."""

    code = "kubernetes-refused"
    exit_code = 4


class KubeUnavailable(KubeError):
    """No answer, 429 or 5xx: ask again later."""

    code = "kubernetes-unavailable"


class KubeExpired(KubeError):
    """The resource version is too old to watch from (410): list again."""

    code = "kubernetes-expired"


class WatchEvent(NamedTuple):
    """One line of a watch. A BOOKMARK's object holds nothing but `metadata.resourceVersion`."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Object


class ObjectList(NamedTuple):
    """What a list answered; `resource_version` is where a watch goes on."""

    items: list[Object]
    resource_version: str


class KubeApi(Protocol):
    """The verbs. `namespace` is empty for cluster-scoped objects, and in `list` and `watch` for all namespaces.

    Every method raises KubeError's children. Cancelling abandons the request; it may have been carried out.
    """

    async def get(self, resource: Resource, name: str, *, namespace: str = "") -> Object:
        """One object. Raises KubeNotFound."""

    async def list(
        self, resource: Resource, *, namespace: str = "", fields: str = "", labels: str = "", keep: Keep | None = None
    ) -> ObjectList:
        """All that match the field and label selectors, fetched in pages. `keep`: what is wanted of each object, asked
        for before the next one is decoded, so that thousands are never there as a whole.
        """

    def watch(
        self, resource: Resource, resource_version: str, *, namespace: str = "", fields: str = "", labels: str = ""
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes since that version, bookmarks among them; ends when the server ends it (some minutes). Who leaves it
        earlier closes it (`contextlib.aclosing`). Raises KubeExpired.
        """

    async def create(self, resource: Resource, body: Object, *, namespace: str = "", dry_run: bool = False) -> Object:
        """Make it. Raises KubeConflict when it is there."""

    async def replace(self, resource: Resource, body: Object, *, namespace: str = "", subresource: str = "") -> Object:
        """Write it whole; with `metadata.resourceVersion` only if nobody changed it (KubeConflict)."""

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Patch,
        *,
        namespace: str = "",
        subresource: str = "",
    ) -> Object:
        """A merge patch (a dict) or a JSON patch (a list)."""

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
        """Server-side apply, forced: these fields are `manager`'s now; those of its last apply that are left out go."""

    async def delete(self, resource: Resource, name: str, *, namespace: str = "", uid: str = "") -> None:
        """Remove it; with `uid`, only that very object (KubeConflict). One that is gone is fine."""
