"""One node as its peers know it. A value; `cacheagent.peers.member` says who gives out lists of them. Pure."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from cacheagent.model import Value

KEY_BYTES: Final = 32
"""Of an Ed25519 public key."""


class Member(Value):
    """A node that wants a digest. `name` is what keys and homes go by, and is never an address; `address`: host:port of
    its peer port; `zone`: where it is, if that is known; `key`: its Ed25519 public key in base64, or several with
    commas between them: the present and the next one, or those of before and after a change. It may sign with any.
    """

    name: str
    address: str
    key: str
    zone: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("expected a member's name, got nothing")
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
            raise ValueError(f"member {self.name}: expected an address such as 10.0.0.1:7411, got {self.address!r}")
        keys_of(self.name, self.key)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Raw public keys, any of which may have signed."""
        return _decoded(self.key)

    @property
    def host(self) -> str:
        """Name or address, without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """TCP."""
        return int(self.address.rpartition(":")[2])


def keys_of(name: str, text: str) -> tuple[bytes, ...]:
    """A member's raw public keys, of how they are written. Raises ValueError."""
    try:
        keys = _decoded(text)
    except binascii.Error as error:
        raise ValueError(f"member {name}: its key is no base64: {error}") from error
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"member {name}: expected a key of {KEY_BYTES} bytes in base64 (`cacheagent peers key`)")
    return keys


def _decoded(text: str) -> tuple[bytes, ...]:
    return tuple(base64.b64decode(key, validate=True) for key in text.split(","))
