"""The services of the Container Storage Interface: each call reads a request, does one thing, answers."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

import grpc.aio
from google.protobuf.wrappers_pb2 import BoolValue

from cacheagent import __version__
from cacheagent.errors import UsageError
from cacheagent.threads import in_thread
from csi.names import DRIVER
from csi.proto import csi_pb2 as pb
from csi.publish import Agent, Publisher
from csi.server import Service
from csi.stats import measure
from csi.target import read_target
from csi.validate import check_capabilities, read_order

Context = grpc.aio.ServicerContext[Any, Any]

_SERVICES: Final = pb.DESCRIPTOR.services_by_name


def services(node: str, kubelet: PurePosixPath, publisher: Publisher, agent: Agent) -> tuple[Service, ...]:
    """Everything that is served on the driver's socket. `kubelet`: the directory as the kubelet writes it."""
    return (
        Service(_SERVICES["Identity"], Identity()),
        Service(_SERVICES["Node"], Node(node, kubelet, publisher)),
        Service(_SERVICES["Controller"], Controller(agent)),
    )


class Identity:
    """Who we are."""

    async def GetPluginInfo(self, request: pb.GetPluginInfoRequest, context: Context) -> pb.GetPluginInfoResponse:
        return pb.GetPluginInfoResponse(name=DRIVER, vendor_version=__version__)

    async def GetPluginCapabilities(
        self, request: pb.GetPluginCapabilitiesRequest, context: Context
    ) -> pb.GetPluginCapabilitiesResponse:
        service = pb.PluginCapability.Service(type=pb.PluginCapability.Service.CONTROLLER_SERVICE)
        return pb.GetPluginCapabilitiesResponse(capabilities=[pb.PluginCapability(service=service)])

    async def Probe(self, request: pb.ProbeRequest, context: Context) -> pb.ProbeResponse:
        return pb.ProbeResponse(ready=BoolValue(value=True))


class Node:
    """What the kubelet calls."""

    def __init__(self, node: str, kubelet: PurePosixPath, publisher: Publisher) -> None:
        self._node = node
        self._kubelet = kubelet
        self._publisher = publisher

    async def NodePublishVolume(
        self, request: pb.NodePublishVolumeRequest, context: Context
    ) -> pb.NodePublishVolumeResponse:
        await self._publisher.publish(read_order(request, self._kubelet), context.time_remaining())
        return pb.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: pb.NodeUnpublishVolumeRequest, context: Context
    ) -> pb.NodeUnpublishVolumeResponse:
        if not request.volume_id:
            raise UsageError("the request names no volume (volume_id)")
        if not request.target_path:
            raise UsageError("the request says not what to unmount (target_path)")
        await self._publisher.unpublish(read_target(request.target_path, self._kubelet))
        return pb.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: pb.NodeGetVolumeStatsRequest, context: Context
    ) -> pb.NodeGetVolumeStatsResponse:
        if not request.volume_id:
            raise UsageError("the request names no volume (volume_id)")
        if not request.volume_path:
            raise UsageError("the request says not which volume (volume_path)")
        usage = await in_thread(lambda: measure(request.volume_path))
        unit = pb.VolumeUsage
        return pb.NodeGetVolumeStatsResponse(
            usage=[
                unit(
                    unit=unit.BYTES, used=usage.bytes, available=usage.free_bytes, total=usage.bytes + usage.free_bytes
                ),
                unit(
                    unit=unit.INODES, used=usage.files, available=usage.free_files, total=usage.files + usage.free_files
                ),
            ]
        )

    async def NodeGetCapabilities(
        self, request: pb.NodeGetCapabilitiesRequest, context: Context
    ) -> pb.NodeGetCapabilitiesResponse:
        rpc = pb.NodeServiceCapability.RPC(type=pb.NodeServiceCapability.RPC.GET_VOLUME_STATS)
        return pb.NodeGetCapabilitiesResponse(capabilities=[pb.NodeServiceCapability(rpc=rpc)])

    async def NodeGetInfo(self, request: pb.NodeGetInfoRequest, context: Context) -> pb.NodeGetInfoResponse:
        return pb.NodeGetInfoResponse(node_id=self._node, max_volumes_per_node=0)  # 0: as many as the kubelet likes


class Controller:
    """The part that csi-sanity needs to get volumes at all. A volume is a version of a model: creating one gives it a
    name, deleting one takes nothing away."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def CreateVolume(self, request: pb.CreateVolumeRequest, context: Context) -> pb.CreateVolumeResponse:
        if not request.name:
            raise UsageError("the request names no volume (name)")
        if not request.volume_capabilities:
            raise UsageError("the request names no volume capability (volume_capabilities)")
        check_capabilities(request.volume_capabilities)
        handle = request.parameters.get("digest", "") or request.parameters.get("model", "")
        if not handle:
            raise UsageError("StorageClass.parameters names neither 'model' nor 'digest'")
        return pb.CreateVolumeResponse(volume=pb.Volume(volume_id=handle, volume_context=request.parameters))

    async def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: Context) -> pb.DeleteVolumeResponse:
        if not request.volume_id:
            raise UsageError("the request names no volume (volume_id)")
        return pb.DeleteVolumeResponse()

    async def ValidateVolumeCapabilities(
        self, request: pb.ValidateVolumeCapabilitiesRequest, context: Context
    ) -> pb.ValidateVolumeCapabilitiesResponse:
        if not request.volume_id:
            raise UsageError("the request names no volume (volume_id)")
        if not request.volume_capabilities:
            raise UsageError("the request names no volume capability (volume_capabilities)")
        await self._agent.model(request.volume_id)
        try:
            check_capabilities(request.volume_capabilities)
        except UsageError as error:
            return pb.ValidateVolumeCapabilitiesResponse(message=str(error))
        return pb.ValidateVolumeCapabilitiesResponse(
            confirmed=pb.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
            )
        )

    async def ControllerGetCapabilities(
        self, request: pb.ControllerGetCapabilitiesRequest, context: Context
    ) -> pb.ControllerGetCapabilitiesResponse:
        rpc = pb.ControllerServiceCapability.RPC(type=pb.ControllerServiceCapability.RPC.CREATE_DELETE_VOLUME)
        return pb.ControllerGetCapabilitiesResponse(capabilities=[pb.ControllerServiceCapability(rpc=rpc)])
