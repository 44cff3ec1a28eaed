"""Where the API server is and how to prove who we are: a pod's service account, or a person's kubeconfig.

A pod needs a token file and a CA and nothing else, so it never loads the Kubernetes package (25 MB, half a second), and
the image has none. A kubeconfig may ask for plug-ins, OIDC or token files, and is left to that package, an extra.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from pathlib import Path
from typing import Any, Final, Protocol

from cacheagent.errors import ConfigError

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_KEPT_S: Final = 60.0
"""A projected token is replaced at 80 % of its life (48 minutes by default); client-go reads it again as often."""


class Access(Protocol):
    """One way to one API server. `namespace`: the one that a request without any means."""

    server: str
    namespace: str
    tls: ssl.SSLContext | None
    tls_name: str
    proxy: str

    def authorization(self) -> str:
        """The header's present value; empty where a client certificate says it all."""

    async def renew(self) -> None:
        """The server refused it (401): get another."""


def find_kubeconfig(environment: dict[str, str] | None = None) -> str:
    """What kubectl would read: `$KUBECONFIG` (several files, separated by colons), else ~/.kube/config; or nothing."""
    named = (os.environ if environment is None else environment).get("KUBECONFIG", "")
    if named:
        return named
    usual = Path("~/.kube/config").expanduser()
    return str(usual) if usual.is_file() else ""


async def find_access(kubeconfig: Path | None = None, context: str = "") -> Access:
    """As kubectl finds its server: what is named, else a kubeconfig, else the pod's own account. Raises ConfigError."""
    if files := str(kubeconfig or "") or find_kubeconfig():
        return await KubeconfigAccess.load(files, context)
    if "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").is_file():
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        return PodAccess(host, port, SERVICE_ACCOUNT)
    raise ConfigError(
        "no cluster is configured: there is no kubeconfig, and this is no pod with a service account",
        hint="set KUBECONFIG, or name a file with --kubeconfig",
    )


class PodAccess:
    """A pod's own service account. The projected token is read again as it rotates."""

    tls_name = proxy = ""
    tls: ssl.SSLContext | None

    def __init__(self, host: str, port: str, folder: Path = SERVICE_ACCOUNT) -> None:
        self.server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._token_file = folder / "token"
        self._token = ""
        self._read_at = 0.0
        try:
            self.tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
            self.namespace = (folder / "namespace").read_text().strip()
        except OSError as error:
            raise ConfigError(
                f"the service account in {folder} cannot be read: {error}",
                hint="the pod needs a projected token with ca.crt and namespace beside it",
            ) from error

    def authorization(self) -> str:
        """Raises ConfigError where the token can't be read and none is known."""
        if not self._token or time.monotonic() - self._read_at > TOKEN_KEPT_S:
            self._read()
        return f"Bearer {self._token}"

    async def renew(self) -> None:
        self._read()

    def _read(self) -> None:
        try:
            self._token = self._token_file.read_text().strip() or self._token
        except OSError as error:
            if not self._token:
                raise ConfigError(
                    f"the service account's token {self._token_file} cannot be read: {error}",
                    hint="the pod needs automountServiceAccountToken, or a projected token there",
                ) from error
        self._read_at = time.monotonic()  # an old token is better than none while the file is being replaced


class KubeconfigAccess:
    """A person's kubeconfig: certificates, tokens, plug-ins, OIDC."""

    def __init__(self, loader: Any, settings: Any, files: str) -> None:
        self._loader = loader
        self._settings = settings
        self.server: str = settings.host
        self.namespace: str = loader.current_context["context"].get("namespace") or "default"
        self.tls_name: str = settings.tls_server_name or ""
        self.proxy: str = settings.proxy or ""
        self.tls: ssl.SSLContext | None = None
        if self.server.startswith("https:"):
            try:
                self.tls = _tls(settings)
            except OSError as error:
                raise ConfigError(f"a certificate in {files} cannot be used: {error}", hint="write it anew") from error

    @classmethod
    async def load(cls, files: str, context: str) -> KubeconfigAccess:
        """Raises ConfigError."""
        if not _some_exist(files):
            raise ConfigError(
                f"there is no kubeconfig {files}", hint="set KUBECONFIG, or name a file with --kubeconfig"
            )
        try:
            config, settings = await asyncio.to_thread(_kubernetes)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the kubeconfig {files} cannot be read: the Python package {error.name!r} is not installed",
                hint="pip install 'cacheagent[kubeconfig]'; our image has none, since a pod uses its own account",
            ) from error
        try:
            loader = await config.load_kube_config(
                config_file=files, context=context or None, client_configuration=settings, persist_config=False
            )
        except (config.ConfigException, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise ConfigError(
                f"the kubeconfig {files} cannot be used: {str(error)[:200]}",
                hint="kubectl config view shows what it holds; --context names another context",
            ) from error
        return cls(loader, settings, files)

    def authorization(self) -> str:
        return str(self._settings.api_key.get("BearerToken", ""))

    async def renew(self) -> None:
        """Plug-ins are run and token files are read again; a plug-in's expiry was wrong if the server says so."""
        self._loader.__dict__.pop("exec_plugin_expiry", None)
        await self._loader.load_and_set(self._settings)


def _some_exist(files: str) -> bool:
    return any(Path(file).expanduser().is_file() for file in files.split(":") if file)


def _kubernetes() -> tuple[Any, Any]:
    """Imported late and once: half a second that a pod never spends."""
    from kubernetes.aio import config
    from kubernetes.aio.client import Configuration

    return config, type.__call__(Configuration)


def _tls(settings: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    if not settings.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
