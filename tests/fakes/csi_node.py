"""One node for the CSI driver: a mount namespace that stands for the host, and one for the driver, as in its container.

The kubelet's directory is shared between the two (`mountPropagation: Bidirectional`), the cache is mounted read-only
for the driver alone. What the "host" has mounted is read from /proc/<pid>/mountinfo.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from csi.mountinfo import Mount, find_top, parse
from csi.proto import csi_pb2 as pb
from csi.proto import pluginregistration_pb2
from csi.registration import driver_socket, registry_socket
from tests.conftest import missing, require
from tests.fakes.agent_api import TREE

PATIENCE_S = 60.0
"""Generous: the machine may be busy, and no test is about speed."""
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
"""Else a channel may take over the connection of one that was closed a moment ago, whoever it was to."""

POD_UID = "2b8d0c4e-8f0e-4a51-9a51-1f5a3f6d7c11"

_HOST = 'mount --bind "$1" "$1" && mount --make-shared "$1" && echo ready && exec cat'
_CONTAINER = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


class CsiNode:
    """A host with a cache of one published model. The driver is started and stopped by the test; everything ends with
    the `with` block."""

    def __init__(self, *, published: bool = True) -> None:
        if os.geteuid() != 0:
            missing("root", "the CSI driver mounts")
        for tool in ("unshare", "nsenter", "mount"):
            require(tool, "a node of its own is a mount namespace")
        self._published = published
        self._folder = tempfile.TemporaryDirectory(prefix="csi-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name).resolve()
        self.kubelet = self.folder / "kubelet"
        self.root = self.folder / "cache"
        self.agent_socket = self.folder / "agent.sock"
        self.log = self.folder / "log"
        self._host: subprocess.Popen[bytes] | None = None
        self._driver: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for view in ("files", "hf") if self._published else ():
            (self.tree / view).mkdir(parents=True)
            (self.tree / view / "model.safetensors").write_bytes(b"weights")
        (self.kubelet / "plugins_registry").mkdir(parents=True)
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _HOST, "host", str(self.kubelet)]
        self._host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._host.stdout is not None
        assert self._host.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.log.exists():
            print(self.log.read_text())  # noqa: T201 - beside the failure
        if self._driver is not None and self._driver.poll() is None:
            self.stop()
        for process in (self._driver, self._host):
            if process is not None:
                process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        stream.close()
        self._folder.cleanup()

    @property
    def tree(self) -> Path:
        """The published version."""
        return self.root / "models" / TREE

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        assert self._driver is not None
        return self._driver

    def target(self, name: str = "w", uid: str = POD_UID) -> Path:
        """Where the kubelet wants a volume; its parent is there, as the kubelet makes it."""
        path = self.kubelet / "pods" / uid / "volumes/kubernetes.io~csi" / name / "mount"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def start(self, *, program: Sequence[str] = ("-m", "csi"), arguments: Sequence[str] = ()) -> None:
        """Returns when the driver's sockets are there and served."""
        places = ["--agent-socket", str(self.agent_socket), "--root", str(self.root)]
        command = [sys.executable, *program, *places, "--kubelet-dir", str(self.kubelet), "--node", "n1", *arguments]
        with self.log.open("wb") as log:
            self._driver = subprocess.Popen(self._in_container(command), stderr=log, stdout=log)
        self.wait_until(lambda: bool(self.events("ready")) or self.driver.poll() is not None)
        assert self.driver.poll() is None, self.log.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The driver's exit code."""
        self.driver.send_signal(number)
        return self.driver.wait(PATIENCE_S)

    def on_host(self, *command: str) -> None:
        """What somebody on the node does."""
        assert self._host is not None
        subprocess.run(["nsenter", f"--mount=/proc/{self._host.pid}/ns/mnt", *command], check=True)

    def in_container(self, *command: str) -> None:
        """What somebody in a container like the driver's does."""
        subprocess.run(self._in_container(command), check=True)

    @contextmanager
    def somebody_in(self, place: Path) -> Iterator[None]:
        """A process on the host whose working directory is that, for the length of the block."""
        assert self._host is not None
        command = ["nsenter", f"--mount=/proc/{self._host.pid}/ns/mnt", "sh", "-c", 'cd "$1" && echo in && exec cat']
        command = [*command, "somebody", str(place)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"in\n"
            try:
                yield
            finally:
                process.kill()

    @property
    def driver_pid(self) -> int:
        """Every program on the way to it was replaced by the next."""
        return self.driver.pid

    def mounts(self) -> list[Mount]:
        """As the host sees them, and with it the containers of pods."""
        return parse(self._mountinfo.read_bytes())

    def mounted(self, target: Path) -> Mount | None:
        """What the host sees at a place."""
        return find_top(self.mounts(), str(target))

    def events(self, message: str = "") -> list[dict[str, Any]]:
        """Lines of the driver's log whose message begins so."""
        lines = self.log.read_text().splitlines(keepends=True)
        parsed = [json.loads(line) for line in lines if line.endswith("\n") and line.startswith("{")]
        return [event for event in parsed if event["message"].startswith(message)]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until it holds; a failure shows the log."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    async def until(self, condition: Callable[[], bool]) -> None:
        """The same, where the fake agent must go on."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            await asyncio.sleep(0.02)

    @contextmanager
    def seen_options(self, target: Path) -> Iterator[set[frozenset[str]]]:
        """Every set of options that the target was seen with on the host, at any moment of the block."""
        seen: set[frozenset[str]] = set()
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(str(target), seen, stop))
        thread.start()
        try:
            yield seen
        finally:
            stop.set()
            thread.join()

    def _watch(self, target: str, seen: set[frozenset[str]], stop: threading.Event) -> None:
        with self._mountinfo.open("rb") as file:
            poll = select.poll()
            poll.register(file, select.POLLERR | select.POLLPRI)
            last = False
            while not last:
                last = stop.is_set()  # look once more after the end
                poll.poll(1)
                file.seek(0)
                seen.update(mount.options for mount in parse(file.read()) if mount.target == target)

    def _in_container(self, command: Sequence[str]) -> list[str]:
        assert self._host is not None
        namespace = [
            "nsenter",
            f"--mount=/proc/{self._host.pid}/ns/mnt",
            "unshare",
            "--mount",
            "--propagation",
            "unchanged",
        ]
        return [*namespace, "sh", "-c", _CONTAINER, "container", str(self.root), *command]

    @property
    def _mountinfo(self) -> Path:
        assert self._host is not None
        return Path(f"/proc/{self._host.pid}/mountinfo")


class Kubelet:
    """Calls the driver as the kubelet does. An async context manager."""

    def __init__(self, node: CsiNode) -> None:
        self._node = node

    async def __aenter__(self) -> Self:
        self._driver = grpc.aio.insecure_channel(f"unix:{driver_socket(self._node.kubelet)}", OWN_CONNECTION)
        self._registry = grpc.aio.insecure_channel(f"unix:{registry_socket(self._node.kubelet)}", OWN_CONNECTION)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._driver.close(None)
        await self._registry.close(None)

    async def call(self, name: str, request: Message, *, limit_s: float | None = PATIENCE_S) -> Any:
        """`Node.NodePublishVolume` and the like. Raises grpc.aio.AioRpcError."""
        service_name, _, method_name = name.partition(".")
        registration = service_name == "Registration"
        services = (pluginregistration_pb2 if registration else pb).DESCRIPTOR.services_by_name
        method = services[service_name].methods_by_name[method_name]
        channel = self._registry if registration else self._driver
        return await channel.unary_unary(
            f"/{services[service_name].full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )(request, timeout=limit_s)

    async def publish(self, target: Path, *, limit_s: float = PATIENCE_S, **attributes: str) -> None:
        """An inline volume of the pod that the target belongs to."""
        request = inline_request(target, **attributes)
        await self.call("Node.NodePublishVolume", request, limit_s=limit_s)

    async def unpublish(self, target: Path) -> None:
        await self.call(
            "Node.NodeUnpublishVolume",
            pb.NodeUnpublishVolumeRequest(volume_id=volume_id_of(target), target_path=str(target)),
        )


def inline_request(target: Path, **attributes: str) -> pb.NodePublishVolumeRequest:
    """What the kubelet sends for a volume in a pod's own spec."""
    capability = pb.VolumeCapability
    pod = {"pod.name": "vllm-0", "pod.namespace": "team-a", "pod.uid": target.parts[-5], "ephemeral": "true"}
    return pb.NodePublishVolumeRequest(
        volume_id=volume_id_of(target),
        target_path=str(target),
        volume_capability=capability(
            mount=capability.MountVolume(),
            access_mode=capability.AccessMode(mode=capability.AccessMode.SINGLE_NODE_WRITER),
        ),
        readonly=True,
        volume_context={**{f"csi.storage.k8s.io/{key}": value for key, value in pod.items()}, **attributes},
    )


def volume_id_of(target: Path) -> str:
    """The kubelet's own rule for inline volumes: pkg/volume/csi/csi_mounter.go, makeVolumeHandle."""
    return f"csi-{hashlib.sha256(f'{target.parts[-5]}{target.parts[-2]}'.encode()).hexdigest()}"
