"""What an administrator sets for the webhook. Values."""

from __future__ import annotations

from typing import Final

from cacheagent.kube.uris import AllowList
from cacheagent.model import Value

KNOWN_SIDECARS: Final = (
    "istio-init", "istio-proxy", "istio-validation",  # Istio
    "linkerd-init", "linkerd-network-validator", "linkerd-proxy",  # Linkerd
    "kuma-init", "kuma-sidecar", "consul-connect-inject-init", "consul-dataplane", "envoy-sidecar",
    "queue-proxy",  # Knative
    "storage-initializer", "modelcar", "modelcar-init", "kube-rbac-proxy",  # KServe, beside its kserve-container
    "vault-agent", "vault-agent-init",
    "cloud-sql-proxy", "cloudsql-proxy", "gke-gcsfuse-sidecar", "gke-gcsfuse-metadata-prefetch",
    "metrics-logger-and-collector", "metrics-collector",  # Katib
    "daprd", "jaeger-agent", "oauth-proxy", "otc-container", "datadog-init-apm-inject",
)  # fmt: skip
"""Containers that others inject, or that never read weights. Names as their projects' own injectors give them."""


class WebhookSettings(Value):
    """`image`: of the waiting container (`wait: init`), ours. `image_pull_policy`: empty is the cluster's default.
    `sidecars`: containers that get no weights unless a pod names them. `affinity_weight`: how much a warm node
    attracts, 1 to 100. `traced`: whether to write on pods when they were judged."""

    image: str = "cacheagent"
    image_pull_policy: str = ""
    sidecars: tuple[str, ...] = KNOWN_SIDECARS
    affinity_weight: int = 100
    allow_list: AllowList = AllowList()
    traced: bool = False
