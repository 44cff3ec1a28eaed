"""Which requests are sound, and what they mean. Pure: each refusal is a sentence that names the field to change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Final, Literal, TypeVar

from cacheagent.api.schema import View, Volume, VolumeRequest
from cacheagent.errors import UsageError
from cacheagent.model import Value
from csi.errors import WrongAnswer
from csi.names import DRIVER, OPTIONS, POD_INFO
from csi.proto import csi_pb2
from csi.target import Target, read_target

Wait = Literal["mount", "init"]

VIEWS: Final[tuple[View, ...]] = ("files", "hf")
WAITS: Final[tuple[Wait, ...]] = ("mount", "init")
ATTRIBUTES: Final = frozenset({"model", "uri", "digest", "view", "wait", "pageCache"})
"""What a person may write into `volumeAttributes`."""

_FROM_KUBERNETES: Final = (POD_INFO, "storage.kubernetes.io/")

_MODEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_TREE: Final = re.compile(r"sha256-[0-9a-f]{64}")
_URI: Final = re.compile(r"[a-z0-9]{1,16}://[\x21-\x7e]{1,2000}")

T = TypeVar("T", bound=str)

_Mode = csi_pb2.VolumeCapability.AccessMode
_READABLE: Final = frozenset({_Mode.SINGLE_NODE_WRITER, _Mode.SINGLE_NODE_READER_ONLY, _Mode.MULTI_NODE_READER_ONLY})
"""Writer among them: that is what the kubelet says for every inline volume."""


class Order(Value):
    """A volume to publish."""

    target: Target
    request: VolumeRequest

    @property
    def volume_id(self) -> str:
        """Of this pod's volume."""
        return self.target.volume_id


def read_order(request: csi_pb2.NodePublishVolumeRequest, kubelet: PurePosixPath) -> Order:
    """What is to be published. Raises UsageError."""
    if not request.volume_id:
        raise UsageError("the request names no volume (volume_id)")
    if not request.target_path:
        raise UsageError("the request says not where to mount (target_path)")
    if not request.HasField("volume_capability"):  # an unset message is truthy: ask for the field
        raise UsageError("the request names no volume capability (volume_capability)")
    check_capabilities([request.volume_capability])
    target = read_target(request.target_path, kubelet)
    return Order(target=target, request=_read_attributes(request.volume_id, request.volume_context, target))


def check_capabilities(capabilities: Iterable[csi_pb2.VolumeCapability]) -> None:
    """Whether volumes of this driver can be used so. Raises UsageError."""
    for capability in capabilities:
        if capability.HasField("block"):
            raise UsageError(
                "volumeMode: Block can't be had: a model is a directory", hint="use volumeMode: Filesystem"
            )
        if not capability.HasField("mount"):
            raise UsageError("the request's volume capability has no access type")
        if not capability.HasField("access_mode"):
            raise UsageError("the request's volume capability has no access mode")
        _check_mount(capability)


def _check_mount(capability: csi_pb2.VolumeCapability) -> None:
    if capability.access_mode.mode not in _READABLE:
        mode = _Mode.Mode.Name(capability.access_mode.mode)
        raise UsageError(
            f"access mode {mode} can't be had: weights are read-only",
            hint="set PersistentVolume.spec.accessModes to [ReadOnlyMany]",
        )
    if capability.mount.fs_type:
        raise UsageError(
            f"fsType {capability.mount.fs_type[:100]!r} can't be had: the weights lie in the node's own file system",
            hint="remove volumes[].csi.fsType from the pod, or spec.csi.fsType from the PersistentVolume",
        )
    for flag in capability.mount.mount_flags:
        if flag not in OPTIONS:
            raise UsageError(
                f"mount option {flag[:100]!r} can't be had",
                hint=f"PersistentVolume.spec.mountOptions may hold {', '.join(sorted(OPTIONS))}, which apply anyway",
            )


def check_answer(volume: Volume, order: Order) -> tuple[str, ...]:
    """The directories below the cache directory that the agent says to mount. Raises WrongAnswer for anything but a
    published version, the wanted one where one was named, or the volume's own directory."""
    parts = tuple(volume.path.split("/"))
    wanted = order.request.digest or volume.digest
    published = (
        len(parts) >= 2
        and parts[0] == "models"
        and _TREE.fullmatch(parts[1]) is not None
        and (not wanted or parts[1] == tree_name(wanted))
    )
    own = len(parts) >= 2 and parts[:2] == ("volumes", order.volume_id)
    if not (published or own) or any(part in {"", ".", ".."} or "\0" in part for part in parts):
        raise WrongAnswer(
            f"the agent answers with a path that is not to be mounted for this volume: {volume.path[:200]!r}",
            hint="report it with both containers' logs",
        )
    return parts


def is_right_source(path: str, order: Order) -> bool:
    """Whether what is mounted (a path below the cache directory) is what this volume is for. A volume that named no
    version has whatever version it got at first."""
    parts = path.split("/")
    if parts[:2] == ["volumes", order.volume_id]:
        return True
    if len(parts) < 3 or parts[0] != "models" or not _TREE.fullmatch(parts[1]) or parts[2] != order.request.view:
        return False
    return not order.request.digest or parts[1] == tree_name(order.request.digest)


def tree_name(digest: str) -> str:
    """A published version's directory below `models/`."""
    return digest.replace(":", "-", 1)


def _read_attributes(handle: str, context: Mapping[str, str], target: Target) -> VolumeRequest:
    written = {key: value for key, value in context.items() if not key.startswith(_FROM_KUBERNETES)}
    if unknown := sorted(set(written) - ATTRIBUTES):
        raise UsageError(
            f"volumeAttributes has {unknown[0][:100]!r}, which means nothing here",
            hint=f"it may hold {', '.join(sorted(ATTRIBUTES))}",
        )
    namespace, uid = context.get(f"{POD_INFO}pod.namespace", ""), context.get(f"{POD_INFO}pod.uid", "")
    if not namespace:
        raise UsageError(
            "the kubelet did not say for which pod this is", hint=f"the CSIDriver {DRIVER} needs podInfoOnMount: true"
        )
    if uid and uid != target.pod_uid:
        raise UsageError(f"the target belongs to pod {target.pod_uid}, and the request to pod {uid[:100]!r}")
    if context.get(f"{POD_INFO}ephemeral") != "true":
        written = _with_handle(handle, written)
    _check_model(written)
    return VolumeRequest(
        namespace=namespace,
        model=written.get("model", ""),
        uri=written.get("uri", ""),
        digest=written.get("digest", ""),
        pod=context.get(f"{POD_INFO}pod.name", ""),
        pod_uid=uid or target.pod_uid,
        view=_one_of("view", written.get("view", "files"), VIEWS),
        wait=_one_of("wait", written.get("wait", "mount"), WAITS),
        page_cache=_one_of("pageCache", written.get("pageCache", "false"), ("true", "false")) == "true",
    )


def _with_handle(handle: str, written: Mapping[str, str]) -> dict[str, str]:
    """A PersistentVolume: its handle says what is wanted, as far as its attributes don't."""
    if _DIGEST.fullmatch(handle):
        return {"digest": handle, **written}
    return dict(written) if written.keys() & {"model", "uri", "digest"} else {"model": handle, **written}


def _check_model(written: Mapping[str, str]) -> None:
    model, uri, digest = (written.get(key, "") for key in ("model", "uri", "digest"))
    if model and uri:
        raise UsageError("volumeAttributes has both 'model' and 'uri'", hint="keep one of them")
    if not (model or uri or digest):
        raise UsageError("volumeAttributes names no model", hint="set 'model' to the name of a ModelCache")
    for key, value, form, meaning in (
        ("model", model, _MODEL, "a model's name: at most 63 lower-case letters, digits and '-'"),
        ("uri", uri, _URI, "a URI such as s3://bucket/prefix"),
        ("digest", digest, _DIGEST, "sha256: and 64 hex digits"),
    ):
        if value and not form.fullmatch(value):
            raise UsageError(f"volumeAttributes: {key} {value[:200]!r} can't be one", hint=f"expected {meaning}")


def _one_of(key: str, value: str, allowed: tuple[T, ...]) -> T:
    for choice in allowed:
        if value == choice:
            return choice
    raise UsageError(f"volumeAttributes: {key} {value[:100]!r} can't be had", hint=f"it may be {' or '.join(allowed)}")
