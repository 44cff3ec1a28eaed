"""The kustomize base is the chart's rendering and nothing else."""

from __future__ import annotations

import copy
import runpy
import subprocess

from tests.conftest import require
from tests.manifests.chart import ROOT, Manifests, Object, find_helm, parse

BASE = ROOT / "daemonset/kustomize/base"
NOT_A_RELEASE = {"helm.sh/chart", "app.kubernetes.io/managed-by"}


def test_base_is_up_to_date() -> None:
    """The files are, byte by byte, what scripts/render writes now."""
    texts = runpy.run_path(str(ROOT / "scripts/render"))["render"](find_helm())
    assert {path.name: path.read_text() for path in BASE.iterdir()} == texts, "run scripts/render"


def test_base_is_what_helm_would_install(default: Manifests) -> None:
    """Built by kubectl's own kustomize: the same objects but for the labels of a release, and the namespace."""
    kubectl = require("kubectl", "builds the kustomize base")
    answer = subprocess.run([kubectl, "kustomize", BASE], capture_output=True, text=True, check=True)
    built = list(parse(answer.stdout).objects)
    (namespace,) = [item for item in built if item["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "privileged"}
    built.remove(namespace)
    assert sorted(map(comparable, built), key=place) == sorted(map(comparable, default.objects), key=place)


def comparable(item: Object) -> Object:
    """Without what speaks of a release, and without the checksum, which is taken over a text with such labels."""
    copied: Object = copy.deepcopy(item)
    labels = copied["metadata"].get("labels", {})
    for label in NOT_A_RELEASE & labels.keys():
        del labels[label]
    template = copied.get("spec", {}).get("template", {}).get("metadata", {})
    template.get("annotations", {}).pop("checksum/config", None)
    return copied


def place(item: Object) -> tuple[str, str]:
    """What an object is found by."""
    return item["kind"], item["metadata"]["name"]
