"""Who is let in: the rules by which a subscription is judged. Pure; time is an argument (seconds since the epoch)."""

from __future__ import annotations

from cacheagent.peers import protocol
from cacheagent.peers.keys import is_signed, signing_key
from cacheagent.peers.shelf import Shelf


class Turned(Exception):
    """A client is refused, with the code and the sentence that it hears."""

    def __init__(self, code: protocol.RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code: protocol.RefusalCode = code
        self.message = message


class Judge:
    """What a server knows when it judges: its own name, the nonce that it gave to this connection, the time, and the
    connection's `channel` (see `Session`)."""

    def __init__(self, name: str, nonce: bytes, now: float, channel: bytes = b"") -> None:
        self._name = name
        self._nonce = nonce
        self._now = now
        self._channel = channel

    def judge(self, ask: protocol.Ask, shelf: Shelf) -> bytes:
        """The public key that it signed with. Raises Turned. The signature comes last: everything that it covers has
        been judged then."""
        if ask.version not in protocol.VERSIONS:
            raise Turned("version", f"this node speaks {list(protocol.VERSIONS)} of the protocol")
        keys = shelf.order.members.get(ask.client)
        if keys is None or ask.client == self._name:
            raise Turned("member", "not a member of that digest")
        if ask.server != self._name:
            raise Turned("member", "that is not the name of this node")
        if abs(ask.time_s - self._now) > protocol.CLOCK_SKEW_S:
            raise Turned("time", f"the clocks differ by more than {protocol.CLOCK_SKEW_S} s")
        if ask.server_nonce != self._nonce or len(ask.client_nonce) != protocol.NONCE_BYTES:
            raise Turned("nonce", "that is not what this connection was asked to sign")
        key = signing_key(protocol.ask_to_sign(ask, self._channel), ask.signature, keys)
        if key is None:
            raise Turned("signature", "the signature is not that member's")
        if ask.pieces != shelf.pieces:
            raise Turned("wants", f"it counts {ask.pieces} pieces, this node {shelf.pieces}")
        if not shelf.is_told:  # it would hear of a part, and get the rest elsewhere
            raise Turned("busy", "this node is just learning what it has of that digest")
        return key

    @staticmethod
    def require_signed(more: protocol.More, session: protocol.Session, shelf: Shelf) -> None:
        """Raises ProtocolError."""
        keys = shelf.order.members.get(session.client, ())
        if not is_signed(protocol.more_to_sign(session, more), more.signature, keys):
            raise protocol.ProtocolError("the signature is not that member's")
