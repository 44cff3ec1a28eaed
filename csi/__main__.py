"""`python -m csi`: the driver of one node, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path, PurePosixPath
from typing import Final

from cacheagent.config import LogSettings
from cacheagent.errors import CacheAgentError, RootTaskEnded
from cacheagent.logs import start_logging
from csi.isolate import leave_the_network

LOG: Final = logging.getLogger("csi")

LOOK_AT_SOCKETS_S: Final = 5.0
_UMASK: Final = 0o077


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 after SIGTERM or SIGINT, 1 when it can't go on, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    options.resolved_kubelet_dir = options.kubelet_dir.resolve()
    start_logging(LogSettings(format=options.log_format, level=options.log_level))
    LOG.setLevel(options.log_level.upper())
    os.umask(_UMASK)
    try:
        leave_the_network()  # while there is one thread
        asyncio.run(_serve(options))
    except CacheAgentError as error:
        LOG.error("%s", error)  # noqa: TRY400 - a sentence; a traceback would be a defect
        return error.exit_code
    LOG.info("stopped")
    return 0


async def _serve(options: argparse.Namespace) -> None:
    # Imported here: gRPC may start threads, and those must not keep the network.
    from cacheagent.api.client import AgentClient
    from csi import driver, registration
    from csi.holds import Holds
    from csi.leases import Leases
    from csi.mountinfo import find_cache
    from csi.publish import Places, Publisher
    from csi.server import serving, until_gone

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    kubelet: Path = options.kubelet_dir
    places = Places(options.root, find_cache(options.root), options.resolved_kubelet_dir)
    holds = Holds()
    sockets = (registration.driver_socket(kubelet), registration.registry_socket(kubelet))
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(AgentClient(options.agent_socket))
        leases = Leases(agent, options.agent_socket, places)
        publisher = Publisher(places, agent, holds, leases.give_back)
        services = driver.services(options.node, PurePosixPath(kubelet), publisher, agent)
        await stack.enter_async_context(serving(sockets[0], services))
        stack.callback(holds.stop)  # before the server waits for its calls to end
        await stack.enter_async_context(serving(sockets[1], [registration.service(kubelet)]))
        LOG.info("ready", extra={"node": options.node, "cache": "{}:{}".format(*places.cache), "kubelet": str(kubelet)})
        roots = {
            "reporting mounts": asyncio.create_task(leases.run()),
            "the sockets": asyncio.create_task(until_gone(sockets, look_every_s=LOOK_AT_SOCKETS_S)),
        }
        await _until_stopped(roots, stop)


async def _until_stopped(roots: dict[str, asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Returns after the order to stop. Raises RootTaskEnded if what runs as long as the driver does has ended."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, *roots.values()}, return_when=asyncio.FIRST_COMPLETED)
    ended = {name: task for name, task in roots.items() if task.done()}
    for task in (stopping, *roots.values()):
        task.cancel()
    await asyncio.gather(stopping, *roots.values(), return_exceptions=True)
    for name, task in ended.items():
        reason = repr(task.exception()) if task.exception() else "gone"
        raise RootTaskEnded(f"the driver stopped because of {name}: {reason}", hint="it is started again")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m csi", description="The CSI driver of one node. Runs as root.")
    add = parser.add_argument
    add("--agent-socket", type=Path, required=True, metavar="PATH", help="the agent's unix socket")
    add("--root", type=Path, required=True, metavar="DIR", help="the cache directory, as this process sees it")
    add("--kubelet-dir", type=Path, default=Path("/var/lib/kubelet"), metavar="DIR", help="default: %(default)s")
    add("--node", required=True, metavar="NAME", help="the node's name")
    add("--log-format", choices=("auto", "human", "json"), default="auto")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


if __name__ == "__main__":
    sys.exit(main())
