"""The webhook's own certificate authority and serving certificate: what there is, and what to do about it at a given
time.

Rules and making; nothing here does I/O. A new authority is *staged* first: its certificate goes into the trusted
bundle while the old one still serves, and only when the API server has had the bundle for a while does a certificate
of it serve. So no request ever meets a certificate that is not trusted yet. The old one leaves the bundle when nobody
serves with it any more."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cacheagent.certificates import begin, usage
from cacheagent.model import Value

CA_CERTIFICATE: Final = "ca.crt"
CA_KEY: Final = "ca.key"
NEXT_CERTIFICATE: Final = "next-ca.crt"
NEXT_KEY: Final = "next-ca.key"
CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
BUNDLE: Final = "ca-bundle.crt"
"""Keys of the Secret. The two `next-ca` are there only while the authority changes."""

BACKDATED: Final = timedelta(minutes=10)
"""Clocks of control plane and nodes differ. Chosen."""

Step = Literal["keep", "create", "renew", "stage", "promote", "prune"]


class CertificateSettings(Value):
    """Seconds. `life_s`: of a serving certificate; `ca_life_s`: of an authority; both are renewed when `renew_at` of
    it is over. `settle_s`: how long the bundle must have been published before a new authority serves (API servers
    learn of it by a watch). `overlap_s`: how long an authority that serves no more stays trusted (replicas learn of
    the new one by a watch)."""

    life_s: float = 90 * 86400.0
    ca_life_s: float = 3650 * 86400.0
    renew_at: float = 2 / 3
    settle_s: float = 60.0
    overlap_s: float = 3600.0


class Pair(NamedTuple):
    """Certificate and private key, PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        """Without the key: tracebacks and assertion messages show values."""
        return f"Pair({self.certificate[:60]!r}, …)"


class Stored(NamedTuple):
    """What the Secret holds. `bundle`: the certificates that shall be trusted, in PEM."""

    ca: Pair
    serving: Pair
    bundle: tuple[bytes, ...]
    next_ca: Pair | None = None

    @property
    def bundle_pem(self) -> bytes:
        """As it stands in the webhook configuration."""
        return b"".join(self.bundle)


def read_secret(secret: dict[str, Any]) -> Stored | None:
    """What a Secret holds; None when something is missing, unreadable, or doesn't fit together."""
    data = secret.get("data") or {}
    try:
        found = {key: base64.b64decode(value, validate=True) for key, value in data.items()}
        ca, serving = Pair(found[CA_CERTIFICATE], found[CA_KEY]), Pair(found[CERTIFICATE], found[KEY])
        next_ca = Pair(found[NEXT_CERTIFICATE], found[NEXT_KEY]) if NEXT_CERTIFICATE in found else None
        bundle = tuple(_pem(certificate) for certificate in x509.load_pem_x509_certificates(found.get(BUNDLE) or ca[0]))
        pairs = (ca, serving) if next_ca is None else (ca, serving, next_ca)
        if not all(_fits(pair) for pair in pairs):
            return None
    except (KeyError, ValueError, TypeError, AttributeError, binascii.Error):
        return None
    needed = [_pem(_load(pair)) for pair in (ca, next_ca) if pair is not None]
    return Stored(ca, serving, tuple(dict.fromkeys([*bundle, *needed])), next_ca)


def secret_data(stored: Stored) -> dict[str, str]:
    """The `data` of the Secret."""
    files = {
        CA_CERTIFICATE: stored.ca.certificate,
        CA_KEY: stored.ca.key,
        CERTIFICATE: stored.serving.certificate,
        KEY: stored.serving.key,
        BUNDLE: stored.bundle_pem,
    }
    if stored.next_ca is not None:
        files |= {NEXT_CERTIFICATE: stored.next_ca.certificate, NEXT_KEY: stored.next_ca.key}
    return {key: base64.b64encode(value).decode() for key, value in files.items()}


def next_step(
    stored: Stored | None, names: Sequence[str], now: datetime, published_for_s: float, settings: CertificateSettings
) -> Step:
    """What to do now. `published_for_s`: how long the webhook configuration has been seen to hold the stored bundle; 0
    when it doesn't."""
    if stored is None:
        return "create"
    ca, serving = _load(stored.ca), _load(stored.serving)
    if stored.next_ca is None and _due(ca, now, settings):
        return "stage"
    expired = ca.not_valid_after_utc <= now
    if stored.next_ca is not None and (expired or published_for_s >= settings.settle_s):
        return "promote"
    if _due(serving, now, settings) or not _issued_by(serving, ca) or not _names(serving) >= set(names):
        return "renew"
    others = set(stored.bundle) - {_pem(_load(pair)) for pair in (stored.ca, stored.next_ca) if pair is not None}
    serves_for = now - serving.not_valid_before_utc - BACKDATED
    return "prune" if others and serves_for >= timedelta(seconds=settings.overlap_s) else "keep"


def take_step(
    step: Step, stored: Stored | None, names: Sequence[str], now: datetime, settings: CertificateSettings
) -> Stored:
    """What the Secret holds afterwards. `stored` may be None for `create` only."""
    if stored is None:
        ca = make_authority(now, settings)
        return Stored(ca, make_serving(ca, names, now, settings), (ca.certificate,))
    match step:
        case "create":
            raise AssertionError("what is stored is not thrown away")
        case "stage":
            coming = make_authority(now, settings)
            return stored._replace(next_ca=coming, bundle=(*stored.bundle, coming.certificate))
        case "promote":
            assert stored.next_ca is not None
            serving = make_serving(stored.next_ca, names, now, settings)
            return stored._replace(ca=stored.next_ca, serving=serving, next_ca=None)
        case "renew":
            return stored._replace(serving=make_serving(stored.ca, names, now, settings))
        case "prune":
            pairs = (stored.ca, stored.next_ca)
            return stored._replace(bundle=tuple(_pem(_load(pair)) for pair in pairs if pair is not None))
        case "keep":
            return stored


def make_authority(now: datetime, settings: CertificateSettings) -> Pair:
    """A new certificate authority. Each has its own name, so that two of them in one bundle are never taken for each
    other."""
    key, serial = ec.generate_private_key(ec.SECP256R1()), x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"cacheagent-webhook-ca-{serial:040x}"[:62])])
    until = now + timedelta(seconds=settings.ca_life_s)
    certificate = (
        begin(name, name, key.public_key(), (now - BACKDATED, until), serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(certificate_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(_pem(certificate), _key_pem(key))


def make_serving(ca: Pair, names: Sequence[str], now: datetime, settings: CertificateSettings) -> Pair:
    """A certificate for these DNS names. It ends before its authority does."""
    authority = _load(ca)
    ca_key = serialization.load_pem_private_key(ca.key, None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + timedelta(seconds=settings.life_s), authority.not_valid_after_utc)
    since = min(now, until - timedelta(seconds=1)) - BACKDATED
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        begin(subject, authority.subject, key.public_key(), (since, until))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(certificate_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return Pair(_pem(certificate), _key_pem(key))


def _due(certificate: x509.Certificate, now: datetime, settings: CertificateSettings) -> bool:
    since = certificate.not_valid_before_utc + BACKDATED
    return now >= since + (certificate.not_valid_after_utc - since) * settings.renew_at


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return set(found.get_values_for_type(x509.DNSName))


def _fits(pair: Pair) -> bool:
    key = serialization.load_pem_private_key(pair.key, None)
    return key.public_key() == _load(pair).public_key()


def _load(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def utc_now() -> datetime:
    """The clock."""
    return datetime.now(UTC)
