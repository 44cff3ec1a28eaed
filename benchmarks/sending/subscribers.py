"""Who is sent to: the product's receiver processes, each with a disk file; or sockets that are read to nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import psutil

from benchmarks.sending.model import DIGEST, Model
from cacheagent.member import Member
from cacheagent.model import piece_range
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.link import Link, Subject
from cacheagent.peers.orders import Arrived, Ended, Progress, Target, Unproved
from cacheagent.peers.receiving import Receiving
from cacheagent.transfer.rate import SharedRate

BUFFER_BYTES = 1 << 20


class Subscriber:
    """One member's receiver process and its link to the server. Implements `link.Owner`."""

    def __init__(self, name: str, key: NodeKey, model: Model, folder: Path, *, tls: bool, sparse: bool) -> None:
        self._is_sparse = sparse
        self._name, self._key, self._model, self._tls = name, key, model, tls
        self._path = folder / name
        self._shared = SharedRate.create(1)
        self._receiving = Receiving(lambda: (self._shared, 0), me=name, tls=tls)
        self._missing: set[int] = set()
        self.received_bytes = 0
        self._whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Its process, and a file of the model's size."""
        with self._path.open("wb") as file:
            if self._is_sparse:
                file.truncate(self._model.size_bytes)
            else:
                os.posix_fallocate(file.fileno(), 0, self._model.size_bytes)
        self._receiving.start()

    async def fetch(self, server: Member, pieces: Iterable[int]) -> None:
        """These, verified and on disk. Raises RuntimeError."""
        self._missing = set(pieces)
        session = self._receiving.session(DIGEST, {server.name: server.keys})
        size = self._model.size_bytes
        self._receiving.add(
            Target(session=session, first=0, path=str(self._path), size_bytes=size, crcs=("crc64nvme",))
        )
        subject = Subject(DIGEST, self._model.pieces, self._length, self._name, self._key, self._receiving, session)
        link = Link(server, subject, self)
        link.want(self._missing)
        link.connect()
        await self._whole

    def _length(self, piece: int) -> int:
        return piece_range(self._model.size_bytes, piece)[1]

    async def close(self) -> None:
        """Its process and its file are gone."""
        await self._receiving.close()
        self._shared.close()
        self._path.unlink(missing_ok=True)

    def link_up(self, link: Link) -> None:
        """See Owner."""

    def link_arrived(self, link: Link, report: Arrived) -> None:
        """See Owner."""
        self._missing.discard(report.number)
        if not self._missing and not self._whole.done():
            self._whole.set_result(None)

    def link_unproved(self, link: Link, report: Unproved) -> None:
        """See Owner."""
        self._fail(f"piece {report.number} is not proved")

    def link_moved(self, link: Link, report: Progress) -> None:
        """See Owner."""
        self.received_bytes += report.received_bytes

    def link_down(self, link: Link, report: Ended) -> None:
        """See Owner."""
        self._fail(f"{report.kind}: {report.message}")

    def _fail(self, why: str) -> None:
        if not self._whole.done():
            self._whole.set_exception(RuntimeError(f"{self._name}: {why}"))


@contextlib.asynccontextmanager
async def subscribers(
    keys: dict[str, NodeKey], model: Model, folder: Path, *, tls: bool, sparse: bool = False
) -> AsyncIterator[Sequence[Subscriber]]:
    """Their processes run and have nothing to do. `keys`: by name. `sparse`: their files have room for nothing yet."""
    made = [Subscriber(name, key, model, folder, tls=tls, sparse=sparse) for name, key in keys.items()]
    try:
        for each in made:
            each.start()
        yield made
    finally:
        await asyncio.gather(*(each.close() for each in made))


def receiving_cpu_s() -> float:
    """CPU seconds of all receiver processes that we have started and that live."""
    total = 0.0
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a plain copy has just ended
            if "cacheagent.peers.receiver" in child.cmdline():
                times = child.cpu_times()
                total += times.user + times.system
    return total


def receive_to_nowhere(address: tuple[str, int], connections: int) -> int:
    """Bytes that came on so many connections until their ends."""
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(_read_to_end(address))) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def _read_to_end(address: tuple[str, int]) -> int:
    total, buffer = 0, bytearray(BUFFER_BYTES)
    with socket.create_connection(address) as sock:
        while count := sock.recv_into(buffer, BUFFER_BYTES, socket.MSG_WAITALL):
            total += count
    return total
