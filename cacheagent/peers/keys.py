"""A node's own keys among its peers: Ed25519, made by its agent, on its disk and nowhere else.

It signs with one. The next one is made and handed out beside it, so that everybody knows it before it is needed.
"""

from __future__ import annotations

import base64
import binascii
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cacheagent.errors import StoreError
from cacheagent.store.durable import disk_faults, sync_directory, write_whole
from cacheagent.store.layout import Layout

if TYPE_CHECKING:
    from cryptography import x509  # every peer process loads this module, and few need certificates

SEED_BYTES: Final = 32


class NodeKey:
    """Signs as this node. `seed`: the private half, 32 bytes; it never leaves the node."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)

    @property
    def public(self) -> bytes:
        """32 bytes."""
        return self._private.public_key().public_bytes_raw()

    @property
    def public_text(self) -> str:
        """In base64, as member lists have it."""
        return base64.b64encode(self.public).decode()

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._private.sign(message)

    def certify(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """A certificate that this node has issued. It is none of the messages that `sign` is given: those are
        msgpack."""
        return builder.sign(self._private, None)

    def __repr__(self) -> str:
        """Without the private half."""
        return f"NodeKey({self.public_text})"


class NodeKeys(NamedTuple):
    """A node's own. `current` signs. `next` signs nothing yet: it becomes the current one when that one's file is
    gone."""

    current: NodeKey
    next: NodeKey

    @property
    def public_text(self) -> str:
        """Both, the current one first, as member lists have them."""
        return f"{self.current.public_text},{self.next.public_text}"


def is_signed(message: bytes, signature: bytes, keys: tuple[bytes, ...]) -> bool:
    """Whether one of these public keys signed it."""
    return signing_key(message, signature, keys) is not None


def signing_key(message: bytes, signature: bytes, keys: tuple[bytes, ...]) -> bytes | None:
    """Which of these public keys signed it."""
    return next((key for key in keys if _agrees(message, signature, key)), None)


def load_or_make_keys(root: Path) -> NodeKeys:
    """This node's keys; those that are not there are made, durable and readable by their owner alone, but for a current
    one whose place the next one can take. Blocks. Raises DiskFault, and StoreError for a file that holds no key.
    """
    layout = Layout(root)
    current = _load(layout.node_key) or _promote(layout) or _make(layout.node_key)
    return NodeKeys(current, _load(layout.next_node_key) or _make(layout.next_node_key))


def _load(path: str) -> NodeKey | None:
    with _faults(path):
        try:
            with open(path, "rb") as file:
                written = file.read(1024)
        except FileNotFoundError:
            return None
    try:
        seed = base64.b64decode(written, validate=False)
    except binascii.Error as error:
        raise _no_key(path) from error
    if len(seed) != SEED_BYTES:
        raise _no_key(path)
    return NodeKey(seed)


def _make(path: str) -> NodeKey:
    seed = os.urandom(SEED_BYTES)
    with _faults(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, base64.b64encode(seed) + b"\n", mode=0o600)
    return NodeKey(seed)


def _promote(layout: Layout) -> NodeKey | None:
    """The next key is the current one from here on, also after a power cut."""
    key = _load(layout.next_node_key)
    if key is not None:
        with _faults(layout.node_key):
            os.rename(layout.next_node_key, layout.node_key)
            sync_directory(layout.root)
    return key


def _agrees(message: bytes, signature: bytes, key: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _no_key(path: str) -> StoreError:
    return StoreError(
        f"{path} holds no key", hint="remove it: another one takes its place, whose public half the lists must have"
    )


def _faults(path: str) -> AbstractContextManager[None]:
    return disk_faults(f"this node's key {path} can't be read or made")
