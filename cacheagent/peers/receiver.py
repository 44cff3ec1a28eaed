"""The process that takes pieces from other members: bytes off the network, through the hashes, onto the disk.

    python -m cacheagent.peers.receiver --fd 3 --shared-fd 4 --slot 0

One thread and one buffer for each connection; the main thread reads orders. It decides nothing: whom to ask for what is
the agent's business, and so is every signature of this node.
"""

from __future__ import annotations

import argparse
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, assert_never

import msgspec

from cacheagent.peers import protocol
from cacheagent.peers.incoming import Incoming, Session
from cacheagent.peers.keys import is_signed
from cacheagent.peers.line import ConnectionOver, Line
from cacheagent.peers.orders import (
    Arrived,
    Connect,
    Disconnect,
    Ended,
    Forget,
    Keys,
    Progress,
    ReceiverOrder,
    ReceiverReport,
    Release,
    Released,
    Said,
    Say,
    Target,
    Unproved,
)
from cacheagent.peers.vouchers import keep
from cacheagent.transfer.channel import Channel, end_process, end_with_parent
from cacheagent.transfer.disk import Buffer, DirectFile
from cacheagent.transfer.orders import PieceHash
from cacheagent.transfer.rate import Meter, SharedRate

PROGRESS_S: Final = 0.25
"""How often a connection tells what came, if anything did. Chosen."""

Report = Callable[[ReceiverReport], None]


class Subscription:
    """One connection. `run` is its thread; the rest is called by the main thread."""

    def __init__(self, order: Connect, session: Session, meter: Meter, report: Report) -> None:
        self.id = order.id
        self._order = order
        self._session = session
        self._meter = meter
        self._report = report
        self._condition = threading.Condition()
        self._expected: set[int] = set()
        self._writing = -1
        self._stopped = False
        self._line = _line(order)
        self._buffer = Buffer()
        self._incoming: dict[int, Incoming] = {}
        self._open: tuple[str, DirectFile] | None = None
        self._received = self._useful = 0
        self._reported_at = time.monotonic()

    def run(self) -> None:
        """Until the connection is over, which is reported last."""
        ended = Ended(id=self.id, kind="closed", message="closed")
        try:
            self._line.connect(self._order.host, self._order.port)
            while not self._stopped:
                self._message()
        except ConnectionOver as over:
            ended = Ended(id=self.id, kind="closed" if self._stopped else over.kind, message=over.message)
        except OSError as error:
            ended = Ended(id=self.id, kind="closed" if self._stopped else "reset", message=str(error))
        except EOFError as error:
            ended = Ended(id=self.id, kind="disk", message=str(error))
        finally:
            self.close()
        self._tell_progress()
        self._report(ended)

    def close(self) -> None:
        """Nothing of it is used any more."""
        self._line.close()
        self._close_file()

    def say(self, order: Say) -> None:
        """Never waits: what a connection does not take at once is the end of it."""
        with self._condition:
            self._expected.update(protocol.unpack_set(order.expect, protocol.MOST_PIECES))
        if not self._line.send(order.data):
            self.stop(by_order=False)

    def release(self, pieces: set[int]) -> None:
        """Returns when nothing of them is written any more. Somebody else may write over what came of them, so it
        counts no more: wanted again, they come from their first byte."""
        with self._condition:
            self._expected -= pieces
            for piece in pieces:
                self._incoming.pop(piece, None)
            self._condition.wait_for(lambda: self._writing not in pieces)

    def stop(self, *, by_order: bool = True) -> None:
        """The thread ends soon."""
        with self._condition:
            self._stopped = self._stopped or by_order
            self._condition.notify_all()
        self._line.shut()

    def _message(self) -> None:
        kind, piece, offset, length = protocol.HEAD.unpack(self._line.exactly(protocol.HEAD.size))
        if kind == protocol.CHUNK and 0 < length <= protocol.CHUNK_LIMIT_BYTES:
            self._chunk(piece, offset, length)
        elif kind == protocol.SEAL and length <= protocol.HASH_BYTES + protocol.SIGNATURE_BYTES + 256:
            self._seal(piece, self._line.exactly(length))
        elif kind == protocol.NOTE and length <= protocol.NOTE_LIMIT_BYTES:
            body = self._line.exactly(length)
            if isinstance(protocol.read_note(body), protocol.Welcome):
                self._line.be_patient()
            self._report(Said(id=self.id, body=body, channel=self._line.channel))
        else:
            raise ConnectionOver("protocol", f"a message of kind {kind} and {length} bytes")

    def _chunk(self, number: int, offset: int, length: int) -> None:
        view = self._buffer.view(length)[:length]
        for part in self._meter.pace(view, time.sleep):
            self._line.fill(part)
        self._received += length
        incoming = self._find(number)
        if incoming is not None:  # else of a piece that somebody else brings by now
            self._write(incoming, number, offset, view)
        if time.monotonic() - self._reported_at >= PROGRESS_S:
            self._tell_progress()

    def _write(self, incoming: Incoming, number: int, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        if end > incoming.length:
            raise ConnectionOver("protocol", f"piece {number}: {end} bytes, it has {incoming.length}")
        if offset != incoming.done:
            incoming.restart()  # it was dropped and wanted again: it comes anew, after what was under way
            if offset:
                return
        with self._condition:
            if not self._is_wanted(number, incoming):
                return
            self._writing = number
        try:
            self._file(incoming.target).write(view, incoming.offset + offset)
        except OSError as error:
            raise ConnectionOver("disk", f"{incoming.target.path}: {error}") from error
        finally:
            with self._condition:
                self._writing = -1
                self._condition.notify_all()
        self._useful += incoming.took(view)

    def _seal(self, number: int, body: bytes) -> None:
        blake3, signature, signer = protocol.read_seal(body)
        incoming = self._find(number)
        if incoming is None or incoming.done != incoming.length:
            return  # as in `_chunk`
        piece = incoming.sums.result()
        if bytes.fromhex(piece.blake3) != blake3:
            raise ConnectionOver("mismatch", f"piece {number} is not what its seal says")
        report = self._judged(number, piece, (blake3, signature, signer))
        self._tell_progress()
        with self._condition:
            if not self._is_wanted(number, incoming):
                return
            self._expected.discard(number)
            del self._incoming[number]
            if isinstance(report, Arrived):
                report = self._kept(report)
            self._report(report)  # before any answer to a Release: whoever writes there next is not to hear of it

    def _judged(self, number: int, piece: PieceHash, seal: tuple[bytes, bytes, str]) -> Arrived | Unproved:
        """What is to be said of a piece that is what its seal says."""
        blake3, signature, signer = seal
        known = self._session.keys
        signed = protocol.seal_to_sign(known.digest, number, piece.length, blake3)
        if is_signed(signed, signature, known.keys.get(signer, ())):
            return Arrived(id=self.id, number=number, piece=piece, signer=signer, signature=signature)
        if signer == self._order.name:
            raise ConnectionOver("forged", f"piece {number} is sealed by {signer[:64]!r}, whose signature that is not")
        return Unproved(id=self.id, number=number, signer=signer[:64])

    def _kept(self, report: Arrived) -> Arrived:
        """Its seal is on disk before anybody counts the piece. A disk that does not take it ends no download."""
        known = self._session.keys
        if not known.seals or report.signer == known.me:
            return report
        try:
            keep(known.seals, report.seal(known.digest))
        except OSError as error:
            return msgspec.structs.replace(report, unkept=str(error)[:200])
        return report

    def _is_wanted(self, number: int, incoming: Incoming) -> bool:
        """And was all the time since its first byte came. With the condition held."""
        return number in self._expected and self._incoming.get(number) is incoming

    def _find(self, number: int) -> Incoming | None:
        if number not in self._expected:
            self._incoming.pop(number, None)
            return None
        incoming = self._incoming.get(number)
        if incoming is None:
            target = self._session.file_of(number)
            if target is None:
                return None
            incoming = self._incoming[number] = Incoming(target, number)
        return incoming

    def _file(self, target: Target) -> DirectFile:
        if self._open is None or self._open[0] != target.path:
            self._close_file()
            self._open = target.path, DirectFile(target.path, writable=True, on_buffered=self._meter.count_buffered)
        return self._open[1]

    def _close_file(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _tell_progress(self) -> None:
        if self._received:
            begun = tuple(number for number in tuple(self._incoming) if number in self._expected)
            self._report(Progress(id=self.id, received_bytes=self._received, useful_bytes=self._useful, begun=begun))
        self._received = self._useful = 0
        self._reported_at = time.monotonic()


class Receiver:
    """Turns orders into connections."""

    def __init__(self, meter: Meter, report: Report) -> None:
        self._meter = meter
        self._report = report
        self._sessions: dict[int, Session] = {}
        self._subscriptions: dict[int, Subscription] = {}

    def accept(self, order: ReceiverOrder) -> None:
        """On the main thread."""
        match order:
            case Target():
                self._session(order.session).add(order)
            case Keys():
                self._session(order.session).keys = order
            case Connect():
                self._connect(order)
            case Say():
                if (one := self._subscriptions.get(order.id)) is not None:
                    one.say(order)
            case Release():
                if (one := self._subscriptions.get(order.id)) is not None:
                    one.release(set(protocol.unpack_set(order.pieces, protocol.MOST_PIECES)))
                self._report(Released(number=order.number))
            case Disconnect():
                if (one := self._subscriptions.get(order.id)) is not None:
                    one.stop()
            case Forget():
                self._sessions.pop(order.session, None)
            case _:
                assert_never(order)

    def _connect(self, order: Connect) -> None:
        """Without a descriptor or a thread to spare there is one connection less, and the others go on."""
        try:
            self._begin(Subscription(order, self._session(order.session), self._meter, self._report))
        except (OSError, RuntimeError) as error:
            self._report(Ended(id=order.id, kind="connect", message=f"no room for a connection: {error}"))

    def _begin(self, subscription: Subscription) -> None:
        """Raises RuntimeError."""
        self._subscriptions[subscription.id] = subscription
        try:
            threading.Thread(target=self._run, args=(subscription,), name="peer", daemon=True).start()
        except RuntimeError:
            del self._subscriptions[subscription.id]
            subscription.close()
            raise

    def _run(self, subscription: Subscription) -> None:
        try:
            subscription.run()
        except Exception as error:  # also one that nobody foresaw ends this connection only
            self._report(Ended(id=subscription.id, kind="protocol", message=f"{type(error).__name__}: {error}"[:400]))
        finally:
            self._subscriptions.pop(subscription.id, None)

    def _session(self, number: int) -> Session:
        return self._sessions.setdefault(number, Session())


def _line(order: Connect) -> Line:
    if not order.tls_keys:
        return Line()
    from cacheagent.peers.tls_line import TlsLine  # certificates are a fifth of this process' start

    return TlsLine(order.name, order.tls_keys)


def main() -> None:
    """Runs until the parent is gone."""
    parser = argparse.ArgumentParser(prog="cacheagent.peers.receiver", description="Started by the agent only.")
    parser.add_argument("--fd", type=int, required=True, help="socket for orders and reports")
    parser.add_argument("--shared-fd", type=int, required=True, help="memory shared with the transfer workers")
    parser.add_argument("--slot", type=int, required=True, help="this process' line in it")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us in order
    end_with_parent()
    channel: Channel[ReceiverOrder] = Channel(socket.socket(fileno=options.fd), ReceiverOrder)
    meter = SharedRate(options.shared_fd).meter(options.slot)
    receiver = Receiver(meter, channel.send)
    try:
        for order in channel:
            receiver.accept(order)
    finally:
        end_process()


if __name__ == "__main__":
    main()
