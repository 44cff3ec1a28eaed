"""What peers say to each other, byte by byte, and what is signed. Pure: no sockets, no clock.

One TCP connection carries one subscription: of one member (the client) at another (the server), for one digest. All
pieces of the large files of a digest have numbers, in the order of paths and then of pieces, the same on every node.

    server -> client   HELLO    protocol versions, a nonce
    client -> server   Ask      who, whom, which digest, when, both nonces, wanted pieces; signed by the client
    server -> client   WELCOME  what the server has; signed over both nonces      (or REFUSAL, and the end)
    server -> client   CHUNK    a part of a piece, as it comes in at the server
    server -> client   SEAL     the piece is whole and proved there: its BLAKE3, signed by whoever vouches for it
    client -> server   More     other wants; signed, numbered

From the server every message has the same head of 20 bytes, from the client 4 bytes of length. A chunk is believed when
the seal of its piece agrees, and not before. Nothing that was signed for one connection, digest or pair of members is
valid for another one.

With TLS all of it goes through one TLS 1.3 connection, whose server shows a certificate that the server's key issued.
The signatures of that connection are bound to the certificate too, so they are good for nothing outside of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec

from cacheagent.model import Value

VERSION: Final = 1
VERSIONS: Final = (1,)
"""What this agent speaks. The client takes the highest that both do."""

MAGIC: Final = "cacheagent peer"
NONCE_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
HASH_BYTES: Final = 32
HANDSHAKE_S: Final = 5.0
"""To be reached, and for a client to say who it is. Chosen."""
GREETING_S: Final = 15.0
"""For a member that was reached to say anything: its process may be starting on a busy machine. Chosen."""
CLOCK_SKEW_S: Final = 300
"""By how much the clocks of two members may differ, as Kerberos allows."""
ASK_LIMIT_BYTES: Final = 1024 * 1024
"""Of one message from a client: wants for 8 million pieces have as much. Chosen."""
NOTE_LIMIT_BYTES: Final = 1024 * 1024
CHUNK_LIMIT_BYTES: Final = 1024 * 1024
"""Of one part of a piece: what a receiver must have room for. Chosen."""
MOST_PIECES: Final = 4 * 1024 * 1024
"""64 TB. What has more is not exchanged."""

HEAD: Final = struct.Struct(">BxxxIIQ")
"""Kind, piece number, offset inside the piece, length of what follows."""
LENGTH: Final = struct.Struct(">I")

NOTE: Final = 1
CHUNK: Final = 2
SEAL: Final = 3

RefusalCode = Literal["version", "digest", "member", "signature", "time", "nonce", "busy", "wants", "tls"]
"""`digest`: not wanted there, or not yet. `busy`: too many connections. `tls`: one side speaks TLS, and the
other does not."""

NO_TLS_HERE: Final = "it speaks TLS, and this node does not: peers.tls must be the same on all members"
TLS_HERE: Final = "this node speaks TLS with its peers and nothing else: peers.tls must be the same on all members"
TLS_CLIENT_HELLO: Final = b"\x16\x03"
"""Of a TLS handshake. As the length of a request it is too much."""

_encode: Final = msgspec.msgpack.Encoder().encode


class ProtocolError(ValueError):
    """The other side said something that the protocol does not allow."""


class NoCommonVersion(ProtocolError):
    """Both speak the protocol, and no version of it that the other one does."""


class SpeaksTls(ProtocolError):
    """Somebody began with TLS where that is not spoken."""


class Hello(Value, tag="hello", forbid_unknown_fields=False):
    """The server's first words. Another version may say more in them, as in a refusal: they come before both know which
    one they speak, so what is not known is passed over."""

    versions: tuple[int, ...]
    nonce: bytes
    magic: str = MAGIC


class Welcome(Value, tag="welcome"):
    """The server has judged the client. `have`: pieces that are here (empty and `complete`: all). `homes`: the names
    among which the pieces' homes were given out here, empty where none are. The nonces are the connection's, so the
    signature is good for nothing else.
    """

    complete: bool
    have: bytes
    homes: tuple[str, ...]
    signature: bytes


class Refusal(Value, tag="refusal", forbid_unknown_fields=False):
    """The server closes after it."""

    code: RefusalCode
    message: str


Note = Hello | Welcome | Refusal


class Ask(Value, tag="ask"):
    """The client's first words. `wants`, `adopt`: sets of pieces; those to adopt the server fetches from the origin if
    nobody else brings them. `pieces`: how many the digest has, in the client's eyes.
    """

    version: int
    digest: str
    client: str
    server: str
    time_s: int
    server_nonce: bytes
    client_nonce: bytes
    pieces: int
    wants: bytes
    adopt: bytes
    signature: bytes


class More(Value, tag="more"):
    """Another `number` each time, from 1. `drop` is taken away, then wants are added: what is in both begins anew."""

    number: int
    wants: bytes
    adopt: bytes
    drop: bytes
    signature: bytes


Request = Ask | More

_notes: Final[msgspec.msgpack.Decoder[Note]] = msgspec.msgpack.Decoder(Note)
_requests: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)


class Session(NamedTuple):
    """What every signature of one connection is bound to. `channel`: the SHA-256 of the certificate that the server
    shows, empty without TLS."""

    digest: str
    client: str
    server: str
    client_nonce: bytes
    server_nonce: bytes
    channel: bytes = b""

    def bind(self, what: str, *parts: object) -> bytes:
        """What is signed."""
        if self.channel:
            return _encode((f"cacheagent peer 1 tls {what}", *self, *parts))
        return _encode((f"cacheagent peer 1 {what}", *self[:-1], *parts))


def session_of(ask: Ask, channel: bytes = b"") -> Session:
    """That of the connection which it was said on."""
    return Session(ask.digest, ask.client, ask.server, ask.client_nonce, ask.server_nonce, channel)


def ask_to_sign(ask: Ask, channel: bytes = b"") -> bytes:
    """Everything that it says. `channel`: as in `Session`."""
    session = session_of(ask, channel)
    return session.bind("ask", ask.version, ask.time_s, ask.pieces, ask.wants, ask.adopt)


def more_to_sign(session: Session, more: More) -> bytes:
    """Everything that it says, on this connection."""
    return session.bind("more", more.number, more.wants, more.adopt, more.drop)


def welcome_to_sign(session: Session, welcome: Welcome) -> bytes:
    """Everything that it says, on this connection."""
    return session.bind("welcome", welcome.complete, welcome.have, welcome.homes)


def seal_to_sign(digest: str, piece: int, length: int, blake3: bytes) -> bytes:
    """What a member vouches for: these bytes are that piece. Valid on every connection, so that it can be passed on."""
    return _encode(("cacheagent peer 1 seal", digest, piece, length, blake3))


def note(message: Note) -> bytes:
    """One message of the server, ready to be sent."""
    body = _encode(message)
    return HEAD.pack(NOTE, 0, 0, len(body)) + body


def seal(piece: int, blake3: bytes, signature: bytes, signer: str) -> bytes:
    """The same for the end of a piece."""
    body = blake3 + signature + signer.encode()
    return HEAD.pack(SEAL, piece, 0, len(body)) + body


_NO_MESSAGE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the decoder raises for bytes that are none; the last one for values within values without end."""


def read_note(body: bytes | bytearray | memoryview) -> Note:
    """Raises ProtocolError."""
    try:
        return _notes.decode(body)
    except _NO_MESSAGE as error:
        raise ProtocolError(f"no message of a peer: {error}") from error


def read_seal(body: bytes) -> tuple[bytes, bytes, str]:
    """BLAKE3, signature, signer. Raises ProtocolError."""
    signer = body[HASH_BYTES + SIGNATURE_BYTES :]
    if not 0 < len(signer) <= 256:
        raise ProtocolError(f"a seal of {len(body)} bytes")
    try:
        return body[:HASH_BYTES], body[HASH_BYTES : HASH_BYTES + SIGNATURE_BYTES], signer.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("a seal whose signer is no name") from error


def request(message: Request) -> bytes:
    """One message of the client, ready to be sent."""
    body = _encode(message)
    return LENGTH.pack(len(body)) + body


def read_request(body: bytes | bytearray | memoryview) -> Request:
    """Raises ProtocolError."""
    try:
        return _requests.decode(body)
    except _NO_MESSAGE as error:
        raise ProtocolError(f"no request of a peer: {error}") from error


def pack_set(numbers: Iterable[int]) -> bytes:
    """A set of piece numbers as a bitmap, as short as it can be."""
    bits = bytearray()
    for number in numbers:
        at, bit = divmod(number, 8)
        if at >= len(bits):
            bits.extend(bytes(at + 1 - len(bits)))
        bits[at] |= 1 << bit
    return bytes(bits)


def unpack_set(bits: bytes, pieces: int) -> list[int]:
    """In ascending order. Raises ProtocolError for a piece that there is not, before so many are listed."""
    if len(bits) > -(-pieces // 8):
        raise ProtocolError(f"a set of {len(bits)} bytes, for {pieces} pieces")
    numbers = [at * 8 + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]
    if numbers and numbers[-1] >= pieces:
        raise ProtocolError(f"piece {numbers[-1]} of {pieces}")
    return numbers


def highest_version(offered: Iterable[int]) -> int:
    """Raises NoCommonVersion."""
    common = set(offered) & set(VERSIONS)
    if not common:
        raise NoCommonVersion(f"it speaks versions {sorted(offered)} of the protocol, this agent {list(VERSIONS)}")
    return max(common)


Signed = TypeVar("Signed", Ask, More, Welcome)


def signed(message: Signed, signature: bytes) -> Signed:
    """The same with its signature."""
    return msgspec.structs.replace(message, signature=signature)
