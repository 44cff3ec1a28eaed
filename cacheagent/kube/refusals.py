"""One table between HTTP answers of an API server and our errors. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cacheagent.kube.api import (
    KubeConflict,
    KubeError,
    KubeExpired,
    KubeNotFound,
    KubeRefused,
    KubeUnavailable,
    Object,
)

_KINDS: Final[dict[int, type[KubeError]]] = {
    400: KubeRefused,
    401: KubeRefused,
    403: KubeRefused,
    404: KubeNotFound,
    405: KubeRefused,
    406: KubeRefused,
    409: KubeConflict,
    410: KubeExpired,
    413: KubeRefused,
    415: KubeRefused,
    422: KubeRefused,
}
"""Whatever is not here (429, 5xx, what nobody foresaw) may pass: KubeUnavailable."""

_HINTS: Final = {
    401: "log in again, or look at the service account's token",
    403: "ask whoever runs the cluster for this permission (RBAC), or look at the chart's roles",
    409: "read it again and decide again",
    413: "the object is larger than the API server takes",
    429: "the API server is busy; it is asked again later",
}


def error_of_answer(status: int, content: bytes, what: str) -> KubeError:
    """The error that an answer means. `what`: the request in words, `get modelcaches "llama"`."""
    try:
        body: Any = msgspec.json.decode(content)
    except msgspec.DecodeError:
        body = None
    if isinstance(body, dict) and body.get("kind") == "Status":
        return error_of_status(body, what, status)
    text = content[:200].decode(errors="replace").strip()
    return _error(status, f"{what}: the API server answered {status}: {text}", _hint(status, {}))


def error_of_status(body: Object, what: str, status: int = 0) -> KubeError:
    """The error that a `Status` object means; in a watch it comes in place of an object."""
    status = status or int(body.get("code") or 500)
    message = str(body.get("message") or body.get("reason") or f"status {status}")
    return _error(status, f"{what}: {message[:1000]}", _hint(status, body.get("details") or {}))


def _error(status: int, message: str, hint: str) -> KubeError:
    return _KINDS.get(status, KubeUnavailable)(message, hint=hint, status=status)


def _hint(status: int, details: Object) -> str:
    if status == 404 and not details.get("name"):
        return "the API server does not know this kind of object: are the chart's CRDs installed?"
    return _HINTS.get(status, "")
