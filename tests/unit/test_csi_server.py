"""gRPC on a unix socket: how errors arrive, and whose socket is removed."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cacheagent.errors import NotCached, UsageError
from csi.proto import pluginregistration_pb2 as pb
from csi.server import Service, serving
from tests.fakes.csi_node import OWN_CONNECTION

DESCRIPTION = pb.DESCRIPTOR.services_by_name["Registration"]


class Servicer:
    """Answers with its name, or fails as it is told."""

    def __init__(self, name: str = "", failure: Exception | None = None) -> None:
        self._name = name
        self._failure = failure

    async def GetInfo(self, request: pb.InfoRequest, context: Any) -> pb.PluginInfo:  # noqa: N802 - gRPC's name
        if self._failure is not None:
            raise self._failure
        return pb.PluginInfo(name=self._name)

    async def NotifyRegistrationStatus(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        raise NotImplementedError


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="csi-") as made:
        yield Path(made)


async def ask(path: Path) -> str:
    """The name of who answers there."""
    async with grpc.aio.insecure_channel(f"unix:{path}", OWN_CONNECTION) as channel:
        call: Any = channel.unary_unary(
            f"/{DESCRIPTION.full_name}/GetInfo",
            request_serializer=pb.InfoRequest.SerializeToString,
            response_deserializer=pb.PluginInfo.FromString,
        )
        answer = await call(pb.InfoRequest(), timeout=30)
        return str(answer.name)


@pytest.mark.asyncio
async def test_a_successor_takes_the_socket_over(folder: Path) -> None:
    """While two run the later one is asked, the earlier one's end leaves its socket alone, and then nothing is left."""
    path = folder / "d/csi.sock"
    async with AsyncExitStack() as later:
        async with serving(path, [Service(DESCRIPTION, Servicer("first"))]):
            assert await ask(path) == "first"
            await later.enter_async_context(serving(path, [Service(DESCRIPTION, Servicer("second"))]))
            assert await ask(path) == "second"
        assert await ask(path) == "second"
    assert list((folder / "d").iterdir()) == []


@pytest.mark.asyncio
async def test_a_socket_of_somebody_else_is_left(folder: Path) -> None:
    """What replaced ours in the meantime is not ours to remove."""
    path = folder / "csi.sock"
    with socket.socket(socket.AF_UNIX) as other:
        async with serving(path, [Service(DESCRIPTION, Servicer("ours"))]):
            other.bind(str(folder / "other"))
            (folder / "other").rename(path)
        assert path.is_socket()


@pytest.mark.asyncio
async def test_a_dead_socket_is_replaced(folder: Path) -> None:
    """What a killed driver left."""
    path = folder / "csi.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(path, [Service(DESCRIPTION, Servicer("alive"))]):
        assert await ask(path) == "alive"
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("failure", "status", "sentence"),
    [
        (NotCached("no such model", hint="look"), grpc.StatusCode.NOT_FOUND, "no such model (look)"),
        (ZeroDivisionError("oh"), grpc.StatusCode.INTERNAL, "a defect in the CSI driver: ZeroDivisionError('oh')"),
    ],
)
@pytest.mark.asyncio
async def test_errors_arrive(folder: Path, failure: Exception, status: grpc.StatusCode, sentence: str) -> None:
    """An error has its status and sentence; a defect is one too, and the server goes on."""
    path = folder / "csi.sock"
    async with serving(path, [Service(DESCRIPTION, Servicer(failure=failure))]):
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await ask(path)
            assert (told.value.code(), told.value.details()) == (status, sentence)


@pytest.mark.asyncio
async def test_a_place_that_can_not_be_listened_at(folder: Path) -> None:
    """Too long a path and a file in the way are told of by a sentence."""
    with pytest.raises(UsageError, match="bytes too long"):
        async with serving(folder / ("x" * 110) / "csi.sock", []):
            pass
    (folder / "file").write_text("")
    with pytest.raises(UsageError, match="can't listen on"):
        async with serving(folder / "file/csi.sock", []):
            pass
