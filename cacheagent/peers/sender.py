"""One subscriber: what it wants, and the thread that sends it what comes."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cacheagent.peers import protocol
from cacheagent.peers.server_line import ServerLine
from cacheagent.peers.shelf import Place, Shelf

CHUNK_BYTES: Final = 512 * 1024
"""What is sent in one go: as much as a transfer worker tells of at once, 26 ms of a link of 20 MB/s. Chosen."""
NO_PROGRESS_S: Final = 30
"""A subscriber that takes nothing for so long is dropped."""
SLOW_S: Final = 4 * NO_PROGRESS_S
"""And one that takes less than a chunk in so long, which is 4.4 kB/s. A node whose link is a tenth of 20 MB/s has seven
times as much from each of 63 others. Only time counts in which the kernel has something for it: none that goes to a
cap, to the disk, or to what has not come. Chosen."""
UNSENT_BYTES: Final = 512 * 1024
"""What may wait in the kernel for one subscriber: with more, what it no longer wants would be sent for seconds."""
LOOK_AGAIN_S: Final = 0.05
"""After a file that is not where it should be: a publish has moved it, and its new place is told in a moment."""

_TCP_NOTSENT_LOWAT: Final = 25
_TAKEN_AND_BUSY: Final = struct.Struct("=120xQ40xQ")
"""Of `struct tcp_info` in linux/tcp.h: bytes that were acknowledged, microseconds in which something was to send."""


class Step(NamedTuple):
    """What is sent next of a piece: bytes, or its seal. `want`: which time it is wanted."""

    piece: int
    want: int
    offset: int
    length: int
    place: Place
    seal: bytes


class Sender:
    """`run` is its thread; the rest is called by the server's main thread."""

    def __init__(
        self, line: ServerLine, shelf: Shelf, client: str, wants: list[int], wait_for: Callable[[int], float]
    ) -> None:
        self.client = client
        self.shelf = shelf
        self.sent_bytes = 0
        self._line = line
        self._wait_for = wait_for
        self._wants: dict[int, int] = {}
        """And which of all wants each is: who drops a piece and wants it again gets it from its first byte."""
        self._numbers = itertools.count()
        self._sent: dict[int, int] = {}
        self._begun: dict[int, None] = {}
        """Pieces of which something is here, in the order in which they are sent; each once."""
        self._seen = 0
        self._stopped = False
        self._mark = 0, 0
        """As `_TAKEN_AND_BUSY`, when it had last taken a chunk."""
        self._open: tuple[str, int] | None = None
        with shelf.condition:
            self._want(wants)
        line.socket.setblocking(True)
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", NO_PROGRESS_S, 0))
        line.socket.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)

    def more(self, wants: list[int], drop: list[int]) -> None:
        """Other wants. Those that are here already are looked for again."""
        with self.shelf.condition:
            for piece in drop:
                self._done_with(piece)
            fresh = [piece for piece in wants if piece not in self._wants]
            self._want(fresh)
            self._begun.update(dict.fromkeys(piece for piece in fresh if self.shelf.available(piece)))
            self.shelf.condition.notify_all()

    def backlog(self) -> int:
        """Bytes that are here and were not sent yet."""
        with self.shelf.condition:
            self._notice()
            return sum(self.shelf.available(piece) - self._sent.get(piece, 0) for piece in self._begun)

    def takes_enough(self) -> bool:
        """Asked every second or so."""
        try:
            info = self._line.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TAKEN_AND_BUSY.size)
        except OSError:
            return True  # it is over already
        if len(info) < _TAKEN_AND_BUSY.size:
            return True  # a kernel older than 4.10, or what only looks like one
        taken, busy_us = _TAKEN_AND_BUSY.unpack(info)
        if taken >= self._mark[0] + CHUNK_BYTES:
            self._mark = taken, busy_us
        return bool(busy_us < self._mark[1] + SLOW_S * 1_000_000)

    def stop(self) -> None:
        """The thread ends soon."""
        with self.shelf.condition:
            self._stopped = True
            self.shelf.condition.notify_all()
        try:
            self._line.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is over already

    def run(self) -> None:
        """Until the subscriber goes, takes nothing any more, is stopped, or the digest is served no more."""
        try:
            while (step := self._next()) is not None:
                self._send(step)
        except OSError:
            return  # whatever broke: the subscriber asks again or goes elsewhere
        finally:
            self.stop()
            self._close_file()
            with self.shelf.condition:
                self.shelf.wanted.subtract(self._wants)

    def _want(self, pieces: list[int]) -> None:
        self._wants.update((piece, next(self._numbers)) for piece in pieces)
        self.shelf.wanted.update(pieces)

    def _done_with(self, piece: int) -> None:
        self._sent.pop(piece, None)
        self._begun.pop(piece, None)
        if self._wants.pop(piece, None) is not None:
            self.shelf.wanted[piece] -= 1

    def _next(self) -> Step | None:
        with self.shelf.condition:
            while not self._stopped and not self.shelf.is_closed:
                if (step := self._find()) is not None:
                    return step
                self.shelf.condition.wait()
        return None

    def _find(self) -> Step | None:
        """The first of what has begun that has more to send."""
        self._notice()
        for piece in self._begun:
            want, sent, here = self._wants[piece], self._sent.get(piece, 0), self.shelf.available(piece)
            if sent < here:
                place = self.shelf.place(piece)
                return Step(piece, want, sent, min(CHUNK_BYTES, here - sent), place, b"")
            seal = self.shelf.seal(piece, self.client) if sent == self.shelf.length(piece) else None
            if seal is not None:
                self._done_with(piece)  # and this is the end of going through them
                return Step(piece, want, 0, 0, self.shelf.place(piece), protocol.seal(piece, *seal))
        return None

    def _notice(self) -> None:
        """What has begun since."""
        arrived = self.shelf.arrived
        while self._seen < len(arrived):
            if arrived[self._seen] in self._wants:
                self._begun[arrived[self._seen]] = None
            self._seen += 1

    def _send(self, step: Step) -> None:
        if step.seal:
            self._line.send(step.seal)
            self._drop_cached(step)
            return
        file = self._file(step.place.path)
        if file < 0:
            time.sleep(LOOK_AGAIN_S)
            return
        if wait_s := self._wait_for(step.length):
            time.sleep(wait_s)
        head = protocol.HEAD.pack(protocol.CHUNK, step.piece, step.offset, step.length)
        self._line.send_file(head, file, step.place.offset + step.offset, step.length, self._sent_more)
        with self.shelf.condition:
            if self._wants.get(step.piece) == step.want:  # else it begins anew
                self._sent[step.piece] = step.offset + step.length

    def _sent_more(self, count: int) -> None:
        self.sent_bytes += count

    def _file(self, path: str) -> int:
        """Open it, or -1 while it is elsewhere. Nothing is read ahead: what lies there may not be written yet."""
        if self._open is None or self._open[0] != path:
            self._close_file()
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return -1
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            self._open = path, file
        return self._open[1]

    def _close_file(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _drop_cached(self, step: Step) -> None:
        """Weights that were read to be sent push out what the node's pods have in the page cache. The last one who
        wanted them drops them."""
        if self.shelf.wanted[step.piece] <= 0 and self._open is not None and self._open[0] == step.place.path:
            os.posix_fadvise(self._open[1], step.place.offset, step.place.length, os.POSIX_FADV_DONTNEED)


def start(sender: Sender, on_end: Callable[[], None]) -> None:
    """Its thread."""

    def run() -> None:
        try:
            sender.run()
        finally:
            on_end()

    threading.Thread(target=run, name="subscriber", daemon=True).start()
