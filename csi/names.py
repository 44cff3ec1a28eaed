"""Names that the driver shares with Kubernetes and with itself."""

from __future__ import annotations

from typing import Final

DRIVER: Final = "csi.cacheagent.io"
"""The same as `cacheagent.kube.names.DRIVER`, which a test compares: this package knows nothing of that one."""

OPTIONS: Final = frozenset({"ro", "nosuid", "nodev", "noexec"})
"""What every mount of ours has, as mountinfo shows it and as a PersistentVolume may ask for."""

POD_INFO: Final = "csi.storage.k8s.io/"
"""Prefix of what the kubelet adds to a volume's attributes, overwriting what a person wrote."""
