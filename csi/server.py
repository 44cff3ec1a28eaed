"""gRPC on a unix socket: services from their descriptions, errors as statuses, a socket that is never half there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cacheagent.errors import CacheAgentError, UsageError
from csi.names import POD_INFO
from csi.statuses import sentence_of, status_of

LOG: Final = logging.getLogger(__name__)

GOODBYE_S: Final = 2.0
"""How long calls may go on after the order to stop; held ones are let go at once. Chosen."""
LONGEST_PATH_BYTES: Final = 107
"""What Linux allows: `sun_path` is 108 bytes with its end (unix(7))."""
_SOCKET_MODE: Final = 0o600

Call = Callable[[Any, Any], Awaitable[Message]]


class Service(NamedTuple):
    """What a .proto file describes, and an object with a coroutine of that name for each of its calls."""

    description: ServiceDescriptor
    servicer: object


@asynccontextmanager
async def serving(path: Path, services: Iterable[Service]) -> AsyncIterator[None]:
    """Serve on a unix socket for the length of the block.

    A socket that is there already is replaced, whoever made it: the new one is made beside it and renamed, so that a
    caller always finds one that is served. It is removed at the end, unless somebody else's is there by then. Raises
    UsageError.
    """
    beside = path.with_name(f".{path.name[:20]}~{os.getpid()}")
    if len(os.fsencode(beside)) > LONGEST_PATH_BYTES:
        raise UsageError(
            f"the socket's path is {len(os.fsencode(beside)) - LONGEST_PATH_BYTES} bytes too long: {path}",
            hint="choose a shorter kubelet directory",
        )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_handlers(service) for service in services])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        server.add_insecure_port(f"unix:{beside}")
        await server.start()
        os.chmod(beside, _SOCKET_MODE)
        inode = os.stat(beside).st_ino
        os.rename(beside, path)
    except (OSError, RuntimeError) as error:
        await server.stop(None)
        raise UsageError(
            f"can't listen on {path}: {error}", hint="is the kubelet's directory mounted and writable?"
        ) from error
    try:
        yield
    finally:
        _remove(path, inode)
        await server.stop(GOODBYE_S)


async def until_gone(paths: Iterable[Path], *, look_every_s: float) -> None:
    """Returns when one of our sockets is removed by somebody: nobody can find us any more."""
    paths = tuple(paths)
    while all(path.exists() for path in paths):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(look_every_s)


def _handlers(service: Service) -> grpc.GenericRpcHandler[Any, Any]:
    methods = {
        method.name: _handler(method, getattr(service.servicer, method.name)) for method in service.description.methods
    }
    return grpc.method_handlers_generic_handler(service.description.full_name, methods)


def _handler(method: MethodDescriptor, call: Call) -> grpc.RpcMethodHandler[Any, Any]:
    async def handle(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        try:
            return await call(request, context)
        except CacheAgentError as error:
            status, sentence = status_of(error), sentence_of(error)
        except Exception as defect:
            LOG.exception("a defect in %s", method.name)
            status, sentence = grpc.StatusCode.INTERNAL, f"a defect in the CSI driver: {defect!r}"[:500]
        LOG.log(_level(status), "%s: %s", method.name, sentence, extra={"status": status.name, **_about(request)})
        await context.abort(status, sentence)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _about(request: Any) -> dict[str, str]:
    """Which volume, and of which pod, where the request says so."""
    context = getattr(request, "volume_context", {})
    named = {
        "volume": getattr(request, "volume_id", ""),
        "namespace": context.get(f"{POD_INFO}pod.namespace", ""),
        "pod": context.get(f"{POD_INFO}pod.name", ""),
    }
    return {key: value[:200] for key, value in named.items() if value}


def _level(status: grpc.StatusCode) -> int:
    """Waiting is what this driver is for."""
    return logging.INFO if status is grpc.StatusCode.FAILED_PRECONDITION else logging.WARNING


def _remove(path: Path, inode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path).st_ino == inode:
            path.unlink()
