"""A pod through the real webhook's rules, by the API server's words: an AdmissionReview in, the stored pod out."""

from __future__ import annotations

import base64
import json
from typing import Any

from cacheagent.kube.webhook.catalog import Catalog
from cacheagent.kube.webhook.review import allow, parse_review, patch_for
from tests.fakes.webhook import SETTINGS, apply_patch

Pod = dict[str, Any]


def admitted(pod: Pod, catalog: Catalog, namespace: str = "team-a") -> Pod:
    """What the API server would store. Raises PodRefused."""
    review = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u",
            "operation": "CREATE",
            "namespace": namespace,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "object": pod,
        },
    }
    request = parse_review(json.dumps(review).encode())
    answer = json.loads(allow(request.uid, patch_for(request, catalog, SETTINGS)))["response"]
    assert answer["allowed"] is True
    after: Pod = apply_patch(pod, json.loads(base64.b64decode(answer["patch"])) if "patch" in answer else [])
    return after


def containers_of(pod: Pod) -> list[Pod]:
    """Init containers and containers, in their order."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
