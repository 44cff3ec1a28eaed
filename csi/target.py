"""Where the kubelet has volumes mounted, and what each is called for it. Pure."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from cacheagent.errors import UsageError

_CSI: Final = "kubernetes.io~csi"
_LOCAL: Final = "kubernetes.io~local-volume"
_POD_UID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,252}")
_LONGEST_VOLUME_ID: Final = 128


class Target(NamedTuple):
    """Where the kubelet wants a volume, as directories below its own:
    `pods/<uid>/volumes/kubernetes.io~csi/<name>/mount`.

    `volume_id`: of the volume for us and the agent. Made from the pod and the name alone, as the kubelet makes it for
    inline volumes: a PersistentVolume's handle is the same for all its pods, and mountinfo knows no handles.
    """

    parts: tuple[str, ...]
    pod_uid: str
    volume_id: str

    @property
    def parent(self) -> tuple[str, ...]:
        """The directory that the target is made in."""
        return self.parts[:-1]

    @property
    def name(self) -> str:
        """The target's own name."""
        return self.parts[-1]


def read_target(path: str, kubelet: PurePosixPath) -> Target:
    """Where that is below the kubelet's directory. Raises UsageError for any other form."""
    target = find_target(path, kubelet)
    if target is None:
        raise UsageError(
            f"target {path[:300]!r} is not a CSI volume of a pod below {kubelet}",
            hint="does the chart's value for the kubelet's directory name the one that this node's kubelet uses?",
        )
    return target


def find_target(path: str, kubelet: PurePosixPath) -> Target | None:
    """The same, for what may be something else."""
    parts = _find_parts(path, kubelet)
    if len(parts) != 6 or (parts[0], parts[2], parts[3]) != ("pods", "volumes", _CSI):
        return None
    uid, name, leaf = parts[1], parts[4], parts[5]
    if not (_POD_UID.fullmatch(uid) and _NAME.fullmatch(name) and _NAME.fullmatch(leaf)):
        return None
    named = f"{uid}{name}" if leaf == "mount" else f"{uid}{name}/{leaf}"
    return Target(parts, uid, f"csi-{hashlib.sha256(named.encode()).hexdigest()}")


def find_local_volume(path: str, kubelet: PurePosixPath) -> str | None:
    """The volume id of a local PersistentVolume that is mounted for a pod at `path`; None for anything else."""
    parts = _find_parts(path, kubelet)
    if len(parts) != 5 or (parts[0], parts[2], parts[3]) != ("pods", "volumes", _LOCAL):
        return None
    uid, name = parts[1], parts[4]
    if not (_POD_UID.fullmatch(uid) and _NAME.fullmatch(name)):
        return None
    return shorten(f"pv-{uid}-{name}".replace("~", "-"))


def shorten(volume_id: str) -> str:
    """At most as long as a volume id may be, and still one of its own."""
    if len(volume_id) <= _LONGEST_VOLUME_ID:
        return volume_id
    return f"{volume_id[: _LONGEST_VOLUME_ID - 17]}-{hashlib.sha256(volume_id.encode()).hexdigest()[:16]}"


def _find_parts(path: str, kubelet: PurePosixPath) -> tuple[str, ...]:
    """The names below the kubelet's directory; none for a path that is elsewhere or not in its plain form."""
    prefix = f"{kubelet}/"
    if not path.startswith(prefix):
        return ()
    parts = tuple(path.removeprefix(prefix).split("/"))
    return () if any(part in {"", ".", ".."} for part in parts) else parts
