"""By which certificates a peer port is known. Rules and making; no I/O.

The members' list names keys, not authorities. So each node's key issues the certificate that its peer port shows, for a
key of the server process that lives for a day; and whoever connects makes itself a certificate of each key that the
list names for that member, and trusts those and nothing else. A key that is not in use yet has one as well.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cacheagent.certificates import begin, usage
from cacheagent.peers.keys import NodeKey
from cacheagent.peers.protocol import CLOCK_SKEW_S

LIFE: Final = timedelta(days=1)
"""Of a certificate; half of it is left when the next one takes its place. Chosen."""
BACKDATED: Final = timedelta(seconds=CLOCK_SKEW_S)
_LIST: Final = "cacheagent members"
_ALWAYS: Final = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
"""How long a key is good for the list says, and nothing else."""


class Shown(NamedTuple):
    """What a peer port shows: certificate and private key in PEM, the certificate's SHA-256, and when it is to be
    replaced."""

    pem: bytes
    sha256: bytes
    replace_at: datetime

    def __repr__(self) -> str:
        """Without the private key."""
        return f"Shown({self.sha256.hex()})"


def issue(node: NodeKey, name: str, now: datetime) -> Shown:
    """A certificate for the peer port of the node of that name, and its key, which is a new one."""
    key = Ed25519PrivateKey.generate()
    builder = (
        begin(_name("cacheagent peer port"), _name(subject_of(name)), key.public_key(), (now - BACKDATED, now + LIFE))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(certificate_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_issued_by(Ed25519PublicKey.from_public_bytes(node.public)), critical=False)
    )
    certificate = node.certify(builder)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    der = certificate.public_bytes(Encoding.DER)
    return Shown(certificate.public_bytes(Encoding.PEM) + private, hashlib.sha256(der).digest(), now + LIFE / 2)


def anchors(name: str, keys: tuple[bytes, ...]) -> bytes:
    """What is trusted of a member with these raw public keys: certificates in DER, one after the other. They are signed
    by nobody who counts, since what makes them good is that the caller trusts them."""
    return b"".join(_anchor(name, Ed25519PublicKey.from_public_bytes(key)) for key in keys)


def subject_of(name: str) -> str:
    """A node's name in a certificate, where names have at most 64 characters."""
    return hashlib.sha256(name.encode()).hexdigest()


def _anchor(name: str, key: Ed25519PublicKey) -> bytes:
    nobody = Ed25519PrivateKey.generate()
    builder = (
        begin(_name(subject_of(name)), _name(_LIST), key, _ALWAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(certificate_sign=True), critical=True)
        .add_extension(_issued_by(nobody.public_key()), critical=False)
    )
    return builder.sign(nobody, None).public_bytes(Encoding.DER)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _issued_by(key: Ed25519PublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
