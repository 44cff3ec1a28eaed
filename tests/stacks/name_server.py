"""Names of services, for programs that go by them: the tests' cluster has no name server of its own."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.process import CommandFailed

DOMAIN = "svc.cluster.local"
_HEADER = struct.Struct("!6H")
_ADDRESS, _INTERNET = 1, 1
_ANSWERS, _NO_SUCH_NAME = 0x8580, 0x8583  # RFC 1035, 4.1.1: it is an answer, with authority; code 0 or 3
_TTL_S = 5


def answer(question: bytes, look_up: Callable[[str], str | None]) -> bytes:
    """To a question for one name (RFC 1035): its IPv4 address; nothing for another type; or that there is no such."""
    number, _, _, *_ = _HEADER.unpack_from(question)
    labels, at = [], _HEADER.size
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    kind, _ = struct.unpack_from("!HH", question, at + 1)
    asked = question[_HEADER.size : at + 5]
    address = look_up(".".join(labels).lower())
    if address is None:
        return _HEADER.pack(number, _NO_SUCH_NAME, 1, 0, 0, 0) + asked
    if kind != _ADDRESS:
        return _HEADER.pack(number, _ANSWERS, 1, 0, 0, 0) + asked
    pointer = 0xC000 | _HEADER.size
    record = struct.pack("!HHHIH", pointer, _ADDRESS, _INTERNET, _TTL_S, 4) + socket.inet_aton(address)
    return _HEADER.pack(number, _ANSWERS, 1, 1, 0, 0) + asked + record


@contextmanager
def serving_names(cluster: Cluster) -> Iterator[None]:
    """Where kubelets send pods for names (UDP): services with an address have one, until the block ends."""

    def look_up(name: str) -> str | None:
        service, _, rest = name.partition(".")
        namespace, _, domain = rest.partition(".")
        if domain != DOMAIN:
            return None
        try:
            address = cluster.get("service", service, "-n", namespace)["spec"].get("clusterIP")
        except CommandFailed:
            return None
        return address if address and address != "None" else None

    class Question(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, replies = self.request
            replies.sendto(answer(data, look_up), self.client_address)

    with socketserver.ThreadingUDPServer((cluster.address, 53), Question) as server:
        thread = threading.Thread(target=server.serve_forever, name="names", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
