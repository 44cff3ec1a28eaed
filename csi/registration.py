"""How the kubelet finds the driver: a socket in its plugin registry that names the driver's own socket.

The kubelet looks at every socket that appears there, and at all of them when it starts; so a restart of either side
needs nothing more than that the sockets are there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import grpc.aio

from csi.names import DRIVER
from csi.proto import pluginregistration_pb2 as pb
from csi.server import Service

LOG: Final = logging.getLogger(__name__)

SPEC_VERSIONS: Final = ("1.0.0",)
"""Of the CSI specification: the oldest that has every call we use, which is what the kubelet compares."""

Context = grpc.aio.ServicerContext[Any, Any]


def driver_socket(kubelet: Path) -> Path:
    """Where the driver serves."""
    return kubelet / "plugins" / DRIVER / "csi.sock"


def registry_socket(kubelet: Path) -> Path:
    """Where the kubelet looks for plugins."""
    return kubelet / "plugins_registry" / f"{DRIVER}-reg.sock"


def service(kubelet: Path) -> Service:
    """What is served on the registry's socket."""
    return Service(pb.DESCRIPTOR.services_by_name["Registration"], Registration(driver_socket(kubelet)))


class Registration:
    """Answers the kubelet's plugin manager, which goes on trying after a failure of its own."""

    def __init__(self, endpoint: Path) -> None:
        self._endpoint = endpoint

    async def GetInfo(self, request: pb.InfoRequest, context: Context) -> pb.PluginInfo:
        return pb.PluginInfo(
            type="CSIPlugin", name=DRIVER, endpoint=str(self._endpoint), supported_versions=SPEC_VERSIONS
        )

    async def NotifyRegistrationStatus(
        self, request: pb.RegistrationStatus, context: Context
    ) -> pb.RegistrationStatusResponse:
        if request.plugin_registered:
            LOG.info("registered with the kubelet")
        else:
            LOG.error("the kubelet did not register the driver", extra={"reason": request.error[:500]})
        return pb.RegistrationStatusResponse()
