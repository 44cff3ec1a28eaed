"""The chart as a test sees it: rendered by the real helm, parsed, and looked into."""

from __future__ import annotations

import functools
import json
import runpy
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tests.conftest import IN_CI, missing
from tests.fakes.kube_server import kube_programs

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "daemonset/chart"
NAMESPACE: Final = "cacheagent-system"
VERSIONS: Final = tuple(f"1.{minor}" for minor in range(30, 38))
"""Of Kubernetes: the manifests hold for all of these."""

Object = dict[str, Any]
Values = Mapping[str, Any]

EVERYTHING: Final[Values] = {
    "image": {"digest": "sha256:" + "a" * 64, "pullSecrets": [{"name": "registry"}], "pullPolicy": "Always"},
    "tracing": {"endpoint": "http://otel-collector.observability:4318"},
    "agent": {
        "config": {
            "store": {"floor": "50GiB", "high_watermark": "90%"},
            "transfer": {"ingress_cap": "10Gbit/s", "workers": 4},
            "page_cache": {"keep_available": "30%"},
            "logs": {"format": "human", "level": "debug"},
        },
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "podAnnotations": {"example.com/a": "b"},
        "podLabels": {"team": "ml"},
        "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"},
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["h100"]}]}],
        "tolerateEverything": True,
        "hostNetwork": True,
    },
    "peers": {"enabled": True, "port": 7500, "egressCap": "5Gbit/s", "originBudget": "8Gbit/s", "tls": True},
    "csi": {"seLinuxMount": True},
    "controller": {"replicas": 3, "tolerations": [{"operator": "Exists"}], "podLabels": {"team": "ml"}},
    "cold": {"enabled": True},
    "webhook": {"timeoutSeconds": 5, "excludedNamespaces": ["kube-system", "istio-system"]},
    "onDemand": {
        "rules": [{"prefix": "s3://models/team-a", "namespaces": ["team-a"], "credentials": "team-a"}],
        "fileRoots": ["/gpfs/models"],
        "clusterNetworks": ["10.0.0.0/8"],
    },
    "sources": {
        "nfs": [{"server": "nas.example", "path": "/export/models"}, {"server": "10.1.2.3", "path": "/b"}],
        "hostPaths": [{"path": "/gpfs/models"}],
    },
    "credentials": {
        "team-a": {"kind": "aws", "secretName": "team-a-s3", "region": "eu-central-1"},
        "minio": {"kind": "aws", "secretName": "minio", "endpoint": "https://minio.example:9000"},
        "hub": {"kind": "huggingface", "secretName": "hub-token"},
    },
    "caBundles": {"corp": {"configMapName": "corp-ca"}},
    "rbac": {"aggregateTo": ["admin", "edit"]},
    "priorityClass": {"create": True},
    "monitoring": {
        "podMonitor": True,
        "serviceMonitor": True,
        "labels": {"release": "prometheus"},
        "rules": {"enabled": True, "runbook": "https://wiki.example/cacheagent"},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Models"}},
    },
    "selinux": {"options": {"type": "spc_t"}, "label": "system_u:object_r:container_file_t:s0"},
}
"""A set of values that turns on all there is."""

SETS: Final[Mapping[str, Values]] = {
    "default": {},
    "everything": EVERYTHING,
    "no-gpu": {"nodes": "all", "kubeletDir": "/var/lib/k0s/kubelet", "cache": {"path": "/mnt/nvme/cacheagent"}},
    "small": {
        "controller": {"replicas": 1},
        "networkPolicy": {"enabled": False},
        "crds": {"install": False},
        "rbac": {"operatorRole": False},
    },
}


class HelmRefused(Exception):
    """What helm said instead of rendering."""


@functools.cache
def find_helm() -> Path:
    """The built one, or the one on PATH, or `missing`; under CI=true it is built, or waited for."""
    if IN_CI:
        return kube_programs()["helm"]
    found: Path | None = runpy.run_path(str(ROOT / "scripts/render"))["find_helm"]()
    if found is None:
        missing("helm", "it renders the chart; scripts/kube_binaries.py builds it")
    return found


def render(values: Values | None = None, *, release: str = "cacheagent", notes: bool = False) -> str:
    """What helm prints. Raises HelmRefused with its words."""
    command = [str(find_helm()), "template", release, str(CHART), "--namespace", NAMESPACE, "--values", "-"]
    answer = subprocess.run(
        command + (["--render-subchart-notes", "--debug"] if notes else []),
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if answer.returncode:
        raise HelmRefused(answer.stderr)
    return answer.stdout


class Manifests(NamedTuple):
    """The objects of one rendering."""

    objects: tuple[Object, ...]

    def get(self, kind: str, name: str) -> Object:
        """The one of that kind and name."""
        (found,) = [item for item in self.all(kind) if item["metadata"]["name"] == name]
        return found

    def all(self, kind: str) -> list[Object]:
        """Those of that kind."""
        return [item for item in self.objects if item["kind"] == kind]

    def pod(self, name: str) -> Object:
        """The pod's specification of the workload of that name."""
        (found,) = [
            item for kind in ("DaemonSet", "Deployment") for item in self.all(kind) if item["metadata"]["name"] == name
        ]
        spec: Object = found["spec"]["template"]["spec"]
        return spec

    @property
    def node_pod(self) -> Object:
        """Of the DaemonSet."""
        return self.pod("cacheagent-node")

    @property
    def controller_pod(self) -> Object:
        """Of the controller."""
        return self.pod("cacheagent-controller")


def container(pod: Object, name: str) -> Object:
    """The container or init container of that name."""
    (found,) = [item for item in [*pod.get("initContainers", []), *pod["containers"]] if item["name"] == name]
    return dict(found)


def mounts(pod: Object, name: str) -> dict[str, Object]:
    """What the container mounts: the volume's source with the mount, by mount path."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    return {
        mount["mountPath"]: {"mount": mount, "volume": volumes[mount["name"]]}
        for mount in container(pod, name).get("volumeMounts", [])
    }


def parse(text: str) -> Manifests:
    """Objects of a stream of YAML documents; a key that is there twice is an error."""
    return Manifests(tuple(item for item in yaml.load_all(text, Loader=StrictLoader) if item))


class StrictLoader(yaml.SafeLoader):
    """Refuses repeated keys, of which others keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """As its parent's."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1}
        assert not repeated, f"repeated keys {repeated} {node.start_mark}"
        return super().construct_mapping(node, deep)


def rules_of(manifests: Manifests, account: str) -> Iterable[tuple[str, Object]]:
    """Every rule that a service account has, with the kind of role that it stands in."""
    for kind in ("ClusterRoleBinding", "RoleBinding"):
        for binding in manifests.all(kind):
            if any(subject["name"] == account for subject in binding["subjects"]):
                role = manifests.get(binding["roleRef"]["kind"], binding["roleRef"]["name"])
                for rule in role["rules"]:
                    yield role["kind"], rule
