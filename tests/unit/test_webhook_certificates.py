"""Certificates of the webhook: what is due when, and that every step leaves clients trusting what is served."""

from __future__ import annotations

import base64
import ssl
from datetime import UTC, datetime, timedelta

import pytest

from cacheagent.kube.webhook.certificates import (
    CertificateSettings,
    Pair,
    Stored,
    make_authority,
    make_serving,
    next_step,
    read_secret,
    secret_data,
    take_step,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)
NAMES = ("webhook.ns.svc", "webhook.ns.svc.cluster.local")
RULES = CertificateSettings()
DAY = timedelta(days=1)


def made(at: datetime = NOW) -> Stored:
    """A fresh authority and certificate."""
    return take_step(next_step(None, NAMES, at, 0, RULES), None, NAMES, at, RULES)


def staged() -> Stored:
    """With a second authority that waits."""
    return take_step("stage", made(), NAMES, NOW, RULES)


def step_at(stored: Stored | None, after: timedelta, *, published_for_s: float = 0.0) -> str:
    """What is due so long after NOW."""
    return next_step(stored, NAMES, NOW + after, published_for_s, RULES)


def test_nothing_there() -> None:
    """Everything is made."""
    assert step_at(None, 0 * DAY) == "create"


@pytest.mark.parametrize(
    ("after", "due"),
    [
        (0 * DAY, "keep"), (59 * DAY, "keep"), (61 * DAY, "renew"), (100 * DAY, "renew"),
        (2432 * DAY, "renew"), (2434 * DAY, "stage"), (4000 * DAY, "stage"),
    ],
)  # fmt: skip
def test_what_is_due_by_age(after: timedelta, due: str) -> None:
    """A certificate is renewed at two thirds of 90 days, an authority replaced at two thirds of ten years."""
    assert step_at(made(), after) == due


def test_other_names_are_renewed_for() -> None:
    """The service was renamed."""
    assert next_step(made(), ("other.ns.svc",), NOW, 0, RULES) == "renew"


def test_a_certificate_of_another_authority_is_renewed() -> None:
    """Whatever mixed the two up."""
    mixed = made()._replace(serving=make_serving(make_authority(NOW, RULES), NAMES, NOW, RULES))
    assert step_at(mixed, 0 * DAY) == "renew"


@pytest.mark.parametrize(("published_for_s", "due"), [(0, "keep"), (59, "keep"), (60, "promote"), (1000, "promote")])
def test_a_new_authority_serves_when_it_is_trusted(published_for_s: float, due: str) -> None:
    """Not before the webhook configuration has held it for a minute."""
    assert step_at(staged(), 0 * DAY, published_for_s=published_for_s) == due


def test_a_waiting_authority_hinders_no_renewal() -> None:
    """It may wait for long where nobody publishes; the certificate in use must not end meanwhile."""
    assert step_at(staged(), 70 * DAY) == "renew"


def test_an_authority_that_ended_waits_for_nothing() -> None:
    """Nothing is trusted any more, so there is nothing to wait for."""
    stored = take_step("stage", made(), NAMES, NOW + 3649 * DAY, RULES)
    assert step_at(stored, 3651 * DAY) == "promote"


def test_the_old_authority_leaves_the_bundle_last() -> None:
    """An hour after the new one began to serve."""
    promoted = take_step("promote", staged(), NAMES, NOW, RULES)
    assert step_at(promoted, timedelta(minutes=59)) == "keep"
    assert step_at(promoted, timedelta(minutes=61)) == "prune"
    pruned = take_step("prune", promoted, NAMES, NOW, RULES)
    assert pruned.bundle == (promoted.ca.certificate,)
    assert step_at(pruned, timedelta(minutes=61)) == "keep"


def trusts(bundle: bytes, serving: Pair, name: str = NAMES[0]) -> bool:
    """Whether a client that has this bundle accepts what is served, as OpenSSL judges: a real handshake, in memory."""
    from cacheagent.kube.webhook.serving import ServingContext

    server = ServingContext()
    server.load(serving)
    client = ssl.create_default_context(cadata=bundle.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = client.wrap_bio(to_client, to_server, server_hostname=name)
    here = server.context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(4):
            for side in (there, here):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError:
        return False
    return there.version() is not None


def test_every_step_serves_what_was_trusted_before() -> None:
    """Through a whole life: whoever has the bundle of the step before, or of this one, accepts this one's
    certificate."""
    now = datetime.now(UTC)  # OpenSSL looks at its own clock
    before = made(now)
    assert trusts(before.bundle_pem, before.serving)
    assert trusts(before.bundle_pem, before.serving, NAMES[1])
    assert not trusts(before.bundle_pem, before.serving, "other.ns.svc")
    assert not trusts(made(now).bundle_pem, before.serving)
    for step in ("renew", "stage", "renew", "promote", "renew", "prune"):
        after = take_step(step, before, NAMES, now, RULES)
        assert trusts(before.bundle_pem, after.serving), step
        assert trusts(after.bundle_pem, before.serving) or step == "prune", step
        before = after


def test_a_secret_holds_it_all() -> None:
    """Written and read again it is the same, at each stage."""
    for stored in (made(), staged(), take_step("promote", staged(), NAMES, NOW, RULES)):
        assert read_secret({"data": secret_data(stored)}) == stored


@pytest.mark.parametrize("key", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
@pytest.mark.parametrize("value", [None, "", "!", base64.b64encode(b"nonsense").decode()])
def test_a_damaged_secret_is_no_secret(key: str, value: str | None) -> None:
    """A missing or unreadable file, and a key that is another certificate's."""
    data = secret_data(made())
    assert read_secret({"data": data}) is not None
    damaged = {name: text for name, text in data.items() if name != key} | ({} if value is None else {key: value})
    assert read_secret({"data": damaged}) is None
    assert read_secret({"data": {**data, "tls.key": data["ca.key"]}}) is None
    assert read_secret({}) is None
    assert read_secret({"data": None}) is None


def test_a_bundle_that_was_lost_is_made_of_the_authorities() -> None:
    """What serves, and what is about to, is trusted whatever the bundle said."""
    data = secret_data(staged())
    stored = read_secret({"data": {**data, "ca-bundle.crt": ""}})
    assert stored is not None
    assert stored.next_ca is not None
    assert set(stored.bundle) == {stored.ca.certificate, stored.next_ca.certificate}


def test_keys_are_not_shown() -> None:
    """Neither in tracebacks nor in assertion messages."""
    assert "PRIVATE" not in repr(made())
