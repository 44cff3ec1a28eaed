"""Frames on the socket between the pool and a worker: 4 bytes big-endian length, then one msgpack message."""

from __future__ import annotations

import struct
from typing import Final, Generic, TypeVar

import msgspec

from cacheagent.errors import TransferFailed

FRAME_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""No honest message is longer: an order for a file of 1 TB with every piece claimed has 6 MB. Chosen."""

_LENGTH: Final = struct.Struct(">I")
_encoder: Final = msgspec.msgpack.Encoder()

Message = TypeVar("Message")


def frame(message: msgspec.Struct) -> bytes:
    """One message, ready to be sent."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader(Generic[Message]):
    """Cuts a stream of bytes into messages: of type Report at the pool's end, Order at the other."""

    def __init__(self, of: object) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(of)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises TransferFailed for what is no frame: the other end is broken."""
        self._buffer += data
        messages: list[Message] = []
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > FRAME_LIMIT_BYTES:
                    raise TransferFailed(f"a frame of {length} bytes on a worker's socket, at most {FRAME_LIMIT_BYTES}")
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                messages.append(self._decode(start + _LENGTH.size, end))
                start = end
        finally:
            del self._buffer[:start]
        return messages

    def _decode(self, start: int, end: int) -> Message:
        try:
            with memoryview(self._buffer) as view, view[start:end] as body:
                return self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise TransferFailed(f"a frame on a worker's socket that is no message: {error}") from error
