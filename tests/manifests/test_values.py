"""values.yaml is documented, and its schema refuses what can't be meant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.manifests.chart import CHART, EVERYTHING, SETS, HelmRefused, Object, render

SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: Object = yaml.safe_load((CHART / "values.yaml").read_text())


def resolved(schema: Object) -> Object:
    reference = schema.get("$ref", "")
    return SCHEMA["$defs"][reference.rpartition("/")[2]] if reference else schema


def fixed_keys(schema: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the keys that the schema lists in values.yaml's own structure; what people fill in below is left out."""
    for name, child in resolved(schema).get("properties", {}).items():
        yield (*path, name)
        if "$ref" not in child and child.get("properties") and (*path, name) not in FREE:
            yield from fixed_keys(child, (*path, name))


FREE = {
    ("agent", "config", "store"),
    ("agent", "config", "transfer"),
    ("agent", "config", "logs"),
    ("agent", "config", "page_cache"),
    ("selinux", "options"),
}
FREE |= {("agent", "updateStrategy"), ("controller", "config")}
"""Settings of others, which are documented where they belong."""


def default_keys(values: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    schema = SCHEMA
    for step in path:
        schema = resolved(schema["properties"][step])
    for name, value in values.items():
        yield (*path, name)
        child = schema["properties"][name]
        if isinstance(value, dict) and "$ref" not in child and child.get("properties") and (*path, name) not in FREE:
            yield from default_keys(value, (*path, name))


def test_schema_and_defaults_speak_of_the_same_values() -> None:
    """Every value has a default that can be read, and every default is known to the schema."""
    assert set(fixed_keys(SCHEMA)) - {("global",)} == set(default_keys(DEFAULTS))


def test_every_value_is_documented() -> None:
    """Above each value that can be set stands what it means; groups are only headings."""
    groups = {path[:-1] for path in default_keys(DEFAULTS)}
    lines = (CHART / "values.yaml").read_text().splitlines()
    place: list[str] = []
    undocumented = []
    seen = set()
    for number, line in enumerate(lines):
        found = re.match(r"( *)([A-Za-z_]+):", line)
        if not found:
            continue
        place[len(found[1]) // 2 :] = [found[2]]
        path = tuple(place)
        if path not in set(default_keys(DEFAULTS)):
            continue
        seen.add(path)
        above = number - 1
        while above > 0 and lines[above].lstrip().startswith("#") and not lines[above].lstrip().startswith("# --"):
            above -= 1
        if path not in groups and not lines[above].startswith(found[1] + "# --"):
            undocumented.append(path)
    assert undocumented == []
    assert seen == set(default_keys(DEFAULTS))


@pytest.mark.parametrize("name", SETS)
def test_good_values_are_accepted(name: str) -> None:
    """The control of the refusals below."""
    assert "kind: DaemonSet" in render(SETS[name])


BAD: dict[str, Any] = {
    "unknown": {"agents": {}},
    "agent.unknown": {"agent": {"hostnetwork": True}},
    "nodes": {"nodes": "some"},
    "path-relative": {"cache": {"path": "var/lib"}},
    "path-with-dots": {"cache": {"path": "/var/lib/../../etc"}},
    "path-root": {"cache": {"path": "/"}},
    "path-with-space": {"kubeletDir": "/var/lib/my kubelet"},
    "port": {"agent": {"port": 0}},
    "port-text": {"webhook": {"port": "https"}},
    "replicas": {"controller": {"replicas": 0}},
    "timeout": {"webhook": {"timeoutSeconds": 31}},
    "failure-policy": {"webhook": {"failurePolicy": "fail"}},
    "grace": {"agent": {"terminationGracePeriodSeconds": 0}},
    "digest": {"image": {"digest": "latest"}},
    "pull-policy": {"image": {"pullPolicy": "Sometimes"}},
    "store-setting": {"agent": {"config": {"store": {"flor": "1GiB"}}}},
    "models-belong-into-modelcaches": {"agent": {"config": {"models": []}}},
    "root-is-the-charts": {"agent": {"config": {"root": "/x"}}},
    "credential-kind": {"credentials": {"a": {"kind": "gcs", "secretName": "s"}}},
    "credential-without-secret": {"credentials": {"a": {"kind": "aws"}}},
    "credential-with-key": {"credentials": {"a": {"kind": "aws", "secretName": "s", "secretKey": "AKIA"}}},
    "credential-name": {"credentials": {"../a": {"kind": "aws", "secretName": "s"}}},
    "token-with-region": {"credentials": {"a": {"kind": "huggingface", "secretName": "s", "region": "x"}}},
    "nfs-path": {"sources": {"nfs": [{"server": "nas", "path": "export"}]}},
    "nfs-comma": {"sources": {"nfs": [{"server": "nas", "path": "/a,/b"}]}},
    "nfs-server": {"sources": {"nfs": [{"server": "nas:/x", "path": "/a"}]}},
    "tree": {"sources": {"hostPaths": [{"path": "/gpfs/../etc"}]}},
    "rule-without-namespaces": {"onDemand": {"rules": [{"prefix": "s3://b/p", "namespaces": []}]}},
    "rule-scheme": {"onDemand": {"rules": [{"prefix": "ftp://b/p", "namespaces": ["*"]}]}},
    "quantity": {"agent": {"resources": {"requests": {"memory": "lots"}}}},
    "our-own-variable": {"agent": {"extraEnv": [{"name": "CACHEAGENT_ROOT", "value": "/"}]}},
    "priority": {"priorityClass": {"value": 2000000000}},
    "aggregate": {"rbac": {"aggregateTo": ["cluster-admin"]}},
    "interval": {"monitoring": {"interval": "often"}},
    "selinux-label": {"selinux": {"label": "container_file_t"}},
}


@pytest.mark.parametrize("name", BAD)
def test_nonsense_is_refused(name: str) -> None:
    """Helm says so before anything reaches a cluster."""
    with pytest.raises(HelmRefused, match="values don't meet the specifications of the schema"):
        render(BAD[name])


def test_everything_turns_on_everything() -> None:
    """What the other tests call everything names nearly every group, so that new ones are not forgotten."""
    assert set(DEFAULTS) - set(EVERYTHING) == {
        "fullnameOverride",
        "crds",
        "nodes",
        "cache",
        "kubeletDir",
        "networkPolicy",
    }
