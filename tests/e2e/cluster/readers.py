"""Pods that read their weights all the while, in both modes, and the proof that nothing disturbed them."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from cacheagent.kube import names
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.models import NotYet, Weights, reading_pod, wait_until_running
from tests.e2e.cluster.waiting import wait_until

MODES = ("csi", "pv")
LONGEST_GAP_S = 20.0
"""Between two rounds of an undisturbed reader, on a machine whose few cores start a cluster's programs meanwhile."""

READ_ALL_THE_WHILE = """
import hashlib, json, os, signal, sys, time

def read(path):  # opened anew, and from the disk: its pages are thrown out first
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()

def look(root="/mnt/models"):
    paths = [os.path.join(at, name) for at, _, found in os.walk(root, onerror=fail) for name in found]
    lines = sorted(f"{os.path.relpath(path, root)} {read(path)}" for path in paths)
    return {"digest": hashlib.sha256("\\n".join(lines).encode()).hexdigest()}

def fail(error):
    raise error

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    try:
        seen = look()
    except OSError as error:
        seen = {"error": repr(error)}
    print(json.dumps({"at": time.time(), **seen}), flush=True)
    time.sleep(0.5)
"""


class Round(msgspec.Struct, frozen=True):
    """What a reader said when it had read everything once: one hash of all, or the error. `at`: since the epoch, s."""

    at: float
    digest: str = ""
    error: str = ""


def hash_of(files: Mapping[str, str]) -> str:
    """The one hash that a reader says of all files."""
    lines = sorted(f"{path} {sha256}" for path, sha256 in files.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Readers:
    """The readers of one namespace. Their pods are named by the caller and stay until they are removed."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.namespace = namespace
        self._cluster = cluster
        self._expected: dict[str, str] = {}
        self._containers: dict[str, str] = {}

    def start(self, name: str, model: str, weights: Weights, *, mode: str, node: str | None = None) -> None:
        """Returns before it runs; see `wait_until_reading`."""
        pod = reading_pod(
            name,
            self.namespace,
            model,
            READ_ALL_THE_WHILE,
            node=node,
            options={"mode": mode},
            spec={"restartPolicy": "Always"},
        )
        self._cluster.apply(pod)
        self._expected[name] = hash_of(weights.files)

    def remove(self, *pods: str) -> None:
        """Delete their pods and wait until they are gone."""
        self._cluster.kubectl("delete", "pod", "-n", self.namespace, *pods, "--timeout=60s")
        for pod in pods:
            self._expected.pop(pod)
            self._containers.pop(pod, None)

    def wait_until_reading(self, limit: float = 90.0) -> None:
        """Each has read the right bytes once; from now on its container must stay the same."""
        for name in self._expected:
            wait_until_running(self._cluster, self.namespace, name, limit=limit)
        self.must_go_on(time.time(), hit=list(self._expected), limit=limit)

    def must_go_on(self, since: float, *, hit: Collection[str] = (), limit: float = 60.0) -> None:
        """Each ends another round, and has seen no error and no wrong byte since `since`.

        None has paused for long and each runs in the same container, but for those `hit`, which were killed.
        """
        now = time.time()
        for name, digest in self._expected.items():
            rounds = wait_until(lambda name=name: self._rounds_until(name, now), f"{name} goes on reading", limit)  # type: ignore[misc]
            seen = [each for each in rounds if each.at >= since]
            wrong = [each for each in seen if each.digest != digest]
            assert not wrong, f"{name}: {wrong[:3]}"
            if name in hit:
                self._containers[name] = self.container_of(name)
                continue
            times = [since, *(each.at for each in seen)]
            longest = max(after - before for before, after in itertools.pairwise(times))
            assert longest < LONGEST_GAP_S, f"{name} read nothing for {longest:.1f} s"
            assert self.container_of(name) == self._containers[name], f"the container of {name} is another one"

    def status_of(self, name: str) -> dict[str, Any]:
        """Of its one container."""
        pod = self._cluster.get("pod", name, "-n", self.namespace)
        return dict(pod["status"]["containerStatuses"][0])

    def container_of(self, name: str) -> str:
        """The id of its container."""
        return str(self.status_of(name)["containerID"])

    def volume_name(self, name: str) -> str:
        """The PersistentVolume that its pod uses; empty in mode `csi`."""
        pod = self._cluster.get("pod", name, "-n", self.namespace)
        for volume in pod["spec"]["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                found = self._cluster.get("pvc", claim["claimName"], "-n", self.namespace)
                return str(found["spec"]["volumeName"])
        return ""

    def _rounds_until(self, name: str, when: float) -> list[Round]:
        """All that it said, once it said something after `when`; also before its container was killed."""
        lines = self._log(name).splitlines()
        if self.status_of(name)["restartCount"]:
            lines = [*self._log(name, "--previous").splitlines(), *lines]
        whole = [line for line in lines if line.startswith("{") and line.endswith("}")]
        rounds = [msgspec.json.decode(line, type=Round) for line in whole]
        if not rounds or rounds[-1].at <= when:
            raise NotYet(json.dumps(lines[-2:]))
        return rounds

    def _log(self, name: str, *options: str) -> str:
        return self._cluster.kubectl("logs", "-n", self.namespace, name, "-c", "main", *options)


def digest_label(cluster: Cluster, node: str, digest: str) -> str:
    """What the node's label says of a version: `ready`, or nothing."""
    labels = cluster.get("node", node)["metadata"]["labels"]
    return str(labels.get(names.version_label(digest), ""))
