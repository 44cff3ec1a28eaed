"""The image holds no Kubernetes package: only people's kubeconfigs need it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.fakes.tls import Tls

BLOCKED = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "kubernetes":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""
IMPORT_ALL = """
import importlib, pkgutil, sys
import cacheagent, csi

for package in (cacheagent, csi):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
parts = ("cacheagent.kube.node_agent", "cacheagent.kube.run_controller", "cacheagent.kube.webhook.server", "csi.driver")
print([part in sys.modules for part in parts], "kubernetes" in sys.modules)
"""
FIND_ACCESS = """
import asyncio, pathlib
from cacheagent.errors import ConfigError
from cacheagent.kube import access

access.SERVICE_ACCOUNT = pathlib.Path({account!r})
try:
    found = asyncio.run(access.find_access())
    print(found.server, found.authorization())
except ConfigError as error:
    print(error.message, "|", error.hint)
"""


def output_of(code: str, **variables: str) -> str:
    """Of a program in an environment with nothing but that."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_part_of_the_product_asks_for_it() -> None:
    """Agent, controller, webhook and CSI driver can be imported without it, and load it as little where it is."""
    assert output_of(BLOCKED + IMPORT_ALL) == "[True, True, True, True] False"
    assert output_of(IMPORT_ALL) == "[True, True, True, True] False"


def test_a_pod_does_without_and_a_kubeconfig_names_what_to_install(tmp_path: Path, tls: Tls) -> None:
    """In a pod the account is enough; with the package, the same kubeconfig is read."""
    (tmp_path / "token").write_text("t")
    (tmp_path / "namespace").write_text("ns")
    (tmp_path / "ca.crt").write_bytes(tls.ca_bundle.read_bytes())
    code = FIND_ACCESS.format(account=str(tmp_path))
    assert output_of(BLOCKED + code, KUBERNETES_SERVICE_HOST="10.0.0.1") == "https://10.0.0.1:443 Bearer t"

    config = tmp_path / "config"
    config.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],"
        " clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}], users: [{name: u, user: {token: x}}]}"
    )
    said, _, hint = output_of(BLOCKED + code, KUBECONFIG=str(config)).partition(" | ")
    assert said == f"the kubeconfig {config} cannot be read: the Python package 'kubernetes' is not installed"
    assert hint.startswith("pip install 'cacheagent[kubeconfig]'")
    assert output_of(code, KUBECONFIG=str(config)) == "http://127.0.0.1:9 Bearer x"
