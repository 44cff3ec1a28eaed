"""AdmissionReview in, AdmissionReview out: the words of `admission.k8s.io/v1` around a decision. Pure."""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec

from cacheagent.errors import UsageError
from cacheagent.kube.webhook.annotations import parse_annotations
from cacheagent.kube.webhook.catalog import Catalog
from cacheagent.kube.webhook.decide import decide, judge
from cacheagent.kube.webhook.inject import inject
from cacheagent.kube.webhook.kserve import take_over
from cacheagent.kube.webhook.refusal import PodRefused
from cacheagent.kube.webhook.settings import WebhookSettings
from cacheagent.model import canonical_json

API_VERSION: Final = "admission.k8s.io/v1"
_REASONS: Final = {400: "BadRequest", 403: "Forbidden", 500: "InternalError"}


class AdmissionRequest(msgspec.Struct, frozen=True):
    """What we use of a request; the rest is left alone. `object` is the pod as it came."""

    uid: str
    operation: str = ""
    namespace: str = ""
    kind: dict[str, str] = {}
    sub_resource: str = msgspec.field(default="", name="subResource")
    object: Any = None

    @property
    def is_new_pod(self) -> bool:
        """Whether this is what the webhook is for; everything else is let through as it is."""
        kind = (self.kind.get("group", ""), self.kind.get("kind", ""))
        return self.operation == "CREATE" and kind == ("", "Pod") and not self.sub_resource


class _Review(msgspec.Struct, frozen=True):
    api_version: str = msgspec.field(name="apiVersion")
    request: AdmissionRequest


def parse_review(body: bytes) -> AdmissionRequest:
    """The request in an AdmissionReview. Raises UsageError."""
    try:
        review = msgspec.json.decode(body, type=_Review)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the body is no AdmissionReview: {error}"[:300]) from error
    if review.api_version != API_VERSION:
        raise UsageError(f"the AdmissionReview is of {review.api_version[:100]!r}, and {API_VERSION} is understood")
    return review.request


def patch_for(request: AdmissionRequest, catalog: Catalog, settings: WebhookSettings) -> list[dict[str, Any]]:
    """The operations for this request; none for what is not ours. Raises PodRefused."""
    if not request.is_new_pod:
        return []
    if not isinstance(request.object, dict):
        raise PodRefused("the request holds no pod")
    injection = decide(request.object, request.namespace, catalog, settings)
    return [] if injection is None else inject(request.object, injection, settings)


def takeover_for(request: AdmissionRequest, catalog: Catalog, settings: WebhookSettings) -> list[dict[str, Any]]:
    """The operations for a pod of KServe's in a namespace that opted in; none for what KServe does by itself. Raises
    PodRefused for what it shall do by itself, and why."""
    if not request.is_new_pod or not isinstance(request.object, dict):
        return []
    taken = take_over(request.object, request.namespace, catalog)
    asked = None if taken is None else parse_annotations(taken.annotations)
    if taken is None or asked is None:
        return []
    injection = judge(taken.pod, asked, request.namespace, catalog, settings)
    return [*taken.operations, *inject(taken.pod, injection, settings)]


def allow(uid: str, operations: list[dict[str, Any]], warning: str = "") -> bytes:
    """Admitted, with these changes, and a sentence for whoever made it."""
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if operations:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(canonical_json(operations)).decode()
    if warning:
        response["warnings"] = [f"cacheagent: {warning}"]
    return _answer(response)


def deny(uid: str, message: str, status: int) -> bytes:
    """Refused, with a sentence for the person."""
    told = {"code": status, "reason": _REASONS[status], "message": f"cacheagent: {message}"}
    return _answer({"uid": uid, "allowed": False, "status": told})


def _answer(response: dict[str, Any]) -> bytes:
    return canonical_json({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response})
