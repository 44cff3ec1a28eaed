"""Where applications listen: a unix socket that replaces only a dead one, and a TCP port."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

from cacheagent.errors import ConfigError, StoreBusy

SOCKET_MODE: Final = 0o660
LONGEST_PATH_BYTES: Final = 107
"""What Linux allows: `sun_path` is 108 bytes with its end (unix(7))."""
GOODBYE_S: Final = 0.5
"""How long requests may go on after the order to stop. Chosen: a part of the agent's 5 s."""


@asynccontextmanager
async def listen_unix(app: web.Application, path: Path) -> AsyncIterator[None]:
    """Serve on a unix socket, mode 0660, for the length of the block.

    Raises StoreBusy if somebody answers there already, ConfigError if the place can't be used. A socket whose owner is
    gone is replaced: the new one is made beside it and renamed, so that it is never there with another mode.
    """
    listener = _bind(path)
    inode = os.stat(path).st_ino
    try:
        async with _serving(app) as runner:
            await web.SockSite(runner, listener).start()
            yield
    finally:
        listener.close()
        _remove(path, inode)


@asynccontextmanager
async def listen_tcp(app: web.Application, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
    """Serve on a TCP port for the length of the block; yields the address that it really is. Raises ConfigError."""
    async with _serving(app) as runner:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"can't listen on {host}:{port}: {error.strerror or error}", hint="choose another address with `listen`"
            ) from error
        yield runner.addresses[0][:2]


@asynccontextmanager
async def _serving(app: web.Application) -> AsyncIterator[web.AppRunner]:
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=GOODBYE_S)
    await runner.setup()
    try:
        yield runner
    finally:
        await runner.cleanup()


def _bind(path: Path) -> socket.socket:
    _require_usable(path)
    beside = path.with_name(f"{path.name}~")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        listener.bind(str(beside))
        listener.listen()  # before anybody can see it: whoever connects is answered
        os.chmod(beside, SOCKET_MODE)
        os.rename(beside, path)
    except OSError as error:
        listener.close()
        raise ConfigError(f"can't listen on {path}: {error.strerror}", hint="choose another `socket`") from error
    return listener


def _remove(path: Path, inode: int) -> None:
    """Unless somebody else's is there by now."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path).st_ino == inode:
            path.unlink()


def _require_usable(path: Path) -> None:
    if len(os.fsencode(path)) >= LONGEST_PATH_BYTES:
        raise ConfigError(
            f"the socket's path has {len(os.fsencode(path))} bytes and may have {LONGEST_PATH_BYTES - 1}: {path}",
            hint="set a shorter one with `socket`",
        )
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket", hint="set another one with `socket`, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                return
            raise ConfigError(f"{path} can't be replaced: {error}", hint="set another one with `socket`") from error
    raise StoreBusy(f"another agent answers on {path}", hint="stop it first, or set another socket")
