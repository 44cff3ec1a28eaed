"""Many small files over one connection: a file costs a request, an answer, a hash, an open and a write, no more.

Requests are sent a few ahead (HTTP pipelining), and answers are taken out of one buffer in which head and body
usually arrive together. Under a cap nothing is asked for before it may come: as many files at once as the cap lets come
in a hundredth of a second, at least one, and the next when these are read. So no answer waits at the origin, and no
connection idles while the cap is waited for.
"""

from __future__ import annotations

import os
from collections import deque
from itertools import islice
from typing import Final

from blake3 import blake3

from cacheagent.checksum import check_bytes
from cacheagent.errors import ChecksumMismatch
from cacheagent.location import HttpLocation
from cacheagent.model import Checksum
from cacheagent.transfer.answer import (
    HEAD_LIMIT_BYTES,
    Head,
    offered_checksums,
    parse_head,
    require_length,
    require_same,
)
from cacheagent.transfer.connection import Connection
from cacheagent.transfer.disk import Buffer, aligned_up
from cacheagent.transfer.failure import OrderFailed, as_failure, disk_failure
from cacheagent.transfer.http1 import refusal
from cacheagent.transfer.orders import Failed, FetchSmall, SmallDone, SmallFile, SmallItem
from cacheagent.transfer.request import Request, describe, make_request
from cacheagent.transfer.running import Running
from cacheagent.transfer.tools import BUFFER_BYTES, Tools, open_range

PIPELINED: Final = 8
"""Requests on their way at once. Measured: a quarter less CPU a file than one at a time, and no round trip a file."""

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


def fetch_small(order: FetchSmall, running: Running, tools: Tools, buffer: Buffer) -> SmallDone | Failed:
    """All files in order of the batch; a failure tells which were done before it."""
    batch = _Batch(order, running, tools, buffer)
    try:
        batch.run()
    except Exception as error:
        return as_failure(error, stopped=running.stopped).report(order.id, tuple(batch.done))
    return SmallDone(id=order.id, files=tuple(batch.done))


class _Batch:
    """One FetchSmall. `done` holds what is on disk and verified, also after a failure."""

    def __init__(self, order: FetchSmall, running: Running, tools: Tools, buffer: Buffer) -> None:
        self.done: list[SmallFile] = []
        self._order = order
        self._running = running
        self._ahead = PIPELINED
        self._due = 0  # files at the front that a cap lets come now; none of them is waited for twice
        self._tools = tools
        largest = max((item.size_bytes for item in order.items), default=0)
        self._memory = buffer.view(max(BUFFER_BYTES, aligned_up(largest + HEAD_LIMIT_BYTES)))

    def run(self) -> None:
        """Raises OrderFailed at the first that fails."""
        waiting = deque(self._order.items)
        while waiting:
            if isinstance(waiting[0].location, HttpLocation):
                self._fetch_http(waiting)
            else:
                self._fetch_mounted(waiting.popleft())

    def _fetch_mounted(self, item: SmallItem) -> None:
        view = self._memory[: item.size_bytes]
        with open_range(item.location, self._running, self._tools) as source:
            source.open(0, item.size_bytes, item.size_bytes)
            source.receive(view)
            source.finish()
        self._keep(item, describe(item.location), item.checksums, view)

    def _fetch_http(self, waiting: deque[SmallItem]) -> None:
        """As many from the front as one connection serves; the next call goes on with another one.

        A server may end a connection between two answers, and one that can't be asked ahead may end it anywhere: from
        then on it is asked for one file at a time, and a new connection that ends before its first answer is whole is
        a failure.
        """
        self._wait_for_cap(waiting)
        endpoint = _request(waiting[0]).endpoint
        connection = self._tools.connections.borrow(endpoint, self._running)
        inbox = Inbox(self._memory, connection)
        left = len(waiting)
        try:
            keep_alive = self._converse(connection, inbox, waiting)
        except OrderFailed as failure:
            connection.close()
            worked = inbox.is_between and (connection.reused or len(waiting) < left)
            if failure.kind != "reset" or self._running.stopped or not (worked or self._ahead > 1):
                raise
            self._ahead = 1
            return
        except BaseException:
            connection.close()
            raise
        if keep_alive:
            self._tools.connections.give_back(connection)
        else:
            connection.close()

    def _converse(self, connection: Connection, inbox: Inbox, waiting: deque[SmallItem]) -> bool:
        """Ask and take answers until no other may be asked for here. False: the server closes the connection."""
        asked: deque[Request] = deque()
        while waiting:
            self._ask_ahead(connection, asked, waiting)
            if not asked:
                return True  # the next one is elsewhere, or has to wait for a cap
            item, request = waiting[0], asked.popleft()
            head = inbox.take_head()
            if head.status != 200:
                raise refusal(connection, request, head, inbox.rest())
            promised = _judge(head, request, item)
            body = inbox.take_body(item.size_bytes)
            self._tools.meter.count_received(item.size_bytes)
            self._keep(item, request.shown, item.checksums + promised, body)
            waiting.popleft()
            self._due -= 1
            if not head.keep_alive:
                return False
        return True

    def _wait_for_cap(self, waiting: deque[SmallItem]) -> None:
        """Returns when at least the first file may come, at once where there is no cap."""
        step = self._tools.meter.slice_bytes
        if self._due > 0 or not step:
            return
        length, self._due = waiting[0].size_bytes, 1
        for item in islice(waiting, 1, PIPELINED):
            if length + item.size_bytes > step or not isinstance(item.location, HttpLocation):
                break
            length += item.size_bytes
            self._due += 1
        self._tools.meter.wait_for(length, self._running.sleep)

    def _ask_ahead(self, connection: Connection, asked: deque[Request], waiting: deque[SmallItem]) -> None:
        """Keep a few requests on their way, in one call; under a cap those that may come now."""
        if len(asked) > self._ahead // 2:
            return
        most = min(self._ahead, max(0, self._due)) if self._tools.meter.slice_bytes else self._ahead
        sent = []
        for item in islice(waiting, len(asked), max(len(asked), most)):
            if not isinstance(item.location, HttpLocation):
                break
            request = make_request(item.location)
            if request.endpoint != connection.endpoint:
                break
            sent.append(request.whole())
            asked.append(request)
        if sent:
            connection.send(b"".join(sent))

    def _keep(self, item: SmallItem, shown: str, checksums: tuple[Checksum, ...], data: memoryview) -> None:
        """Check first, write after: a target with wrong bytes never exists. `shown` names the file in messages."""
        self._running.require_wanted()
        try:
            agreed = check_bytes(shown, checksums, data) if checksums else ()
        except ChecksumMismatch as error:
            raise OrderFailed("mismatch", error.message) from error
        try:
            _write_new(item.target, data)
        except OSError as error:
            raise disk_failure(error, item.target) from error
        self._running.sign()
        self.done.append(SmallFile(blob_id=item.blob_id, blake3=blake3(data).hexdigest(), verified_by=agreed))


class Inbox:
    """Answers one after the other, out of one buffer. What is taken is valid until the next call."""

    def __init__(self, memory: memoryview, connection: Connection) -> None:
        self._memory = memory
        self._connection = connection
        self._start = self._filled = 0
        self.is_between = True
        """Between two answers: nothing of the next one has come."""

    def take_head(self) -> Head:
        """Raises OrderFailed."""
        self._make_room(HEAD_LIMIT_BYTES)
        end, filled = self._connection.receive_head(self._memory[self._start :], self._filled - self._start)
        self._filled = self._start + filled
        head = parse_head(bytes(self._memory[self._start : self._start + end]))
        self._start += end
        self.is_between = False
        return head

    def take_body(self, length: int) -> memoryview:
        """Raises OrderFailed."""
        self._make_room(length)
        end = self._start + length
        if self._filled < end:
            self._connection.fill(self._memory[self._filled : end])
            self._filled = end
        body = self._memory[self._start : end]
        self._start = end
        self.is_between = self._start == self._filled
        return body

    def rest(self) -> memoryview:
        """What came after what was taken."""
        return self._memory[self._start : self._filled]

    def _make_room(self, length: int) -> None:
        if self._start == self._filled:
            self._start = self._filled = 0
        elif self._start + length > len(self._memory):
            rest = bytes(self.rest())
            self._memory[: len(rest)] = rest
            self._start, self._filled = 0, len(rest)


def _judge(head: Head, request: Request, item: SmallItem) -> tuple[Checksum, ...]:
    """The checksums that come with the answer. Raises OrderFailed where it isn't the file that was listed."""
    try:
        require_same(head, request.location.etag)
        require_length(head, item.size_bytes)
        return offered_checksums(head) if request.location.checksum_headers else ()
    except OrderFailed as failure:
        raise failure.about(request.shown) from None


def _request(item: SmallItem) -> Request:
    assert isinstance(item.location, HttpLocation)
    return make_request(item.location)


def _write_new(path: str, data: memoryview) -> None:
    fd = os.open(path, _CREATE, 0o644)
    try:
        while len(data):
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
