"""What an S3 server's error codes and boto3's exceptions mean for the one who asked.

What servers and exceptions say in their own words is not passed on: it may hold what was signed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import botocore.exceptions as boto

from cacheagent.errors import (
    CacheAgentError,
    ChecksumMismatch,
    ConfigError,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginUnavailable,
    OriginWrong,
    SourceChanged,
    UsageError,
)
from cacheagent.source.address import untrusted_certificate

_Meaning = tuple[type[CacheAgentError], str]

_READ_RIGHTS = "s3:ListBucket on the bucket and s3:GetObject on its objects are needed"
_REGION = "set the bucket's own region"
_CODES: Final[Mapping[str, _Meaning]] = {
    "NoSuchBucket": (OriginNotFound, "is the bucket's name right, and the endpoint?"),
    "NoSuchKey": (OriginNotFound, "is the prefix right?"),
    "NoSuchVersion": (OriginNotFound, "the version was deleted; resolve again"),
    "InvalidBucketName": (OriginNotFound, "is the bucket's name right?"),
    "PreconditionFailed": (SourceChanged, "resolve again"),
    "AccessDenied": (OriginForbidden, _READ_RIGHTS),
    "InvalidAccessKeyId": (OriginForbidden, "is the endpoint the one that these credentials are for?"),
    "SignatureDoesNotMatch": (OriginForbidden, "the secret key does not fit the access key"),
    "ExpiredToken": (OriginForbidden, "the credentials have expired; renew them"),
    "InvalidToken": (OriginForbidden, "the session token is not valid at this endpoint"),
    "RequestTimeTooSkewed": (OriginForbidden, "this node's clock is wrong"),
    "InvalidObjectState": (OriginForbidden, "the object is archived (Glacier); restore it first"),
    "PermanentRedirect": (OriginWrong, _REGION),
    "AuthorizationHeaderMalformed": (OriginWrong, _REGION),
    "IllegalLocationConstraintException": (OriginWrong, _REGION),
    "SlowDown": (OriginThrottled, "the server limits requests; try later"),
    "TooManyRequests": (OriginThrottled, "the server limits requests; try later"),
    "RequestLimitExceeded": (OriginThrottled, "the server limits requests; try later"),
    "Throttling": (OriginThrottled, "the server limits requests; try later"),
    "ThrottlingException": (OriginThrottled, "the server limits requests; try later"),
}
_STATUSES: Final[Mapping[int, _Meaning]] = {
    301: (OriginWrong, _REGION),
    401: (OriginForbidden, _READ_RIGHTS),
    403: (OriginForbidden, _READ_RIGHTS),
    404: (OriginNotFound, "is the name right, and the endpoint?"),
    408: (OriginUnavailable, "try later"),
    412: (SourceChanged, "resolve again"),
    429: (OriginThrottled, "the server limits requests; try later"),
    503: (OriginThrottled, "the server limits requests; try later"),
}
"""Answers to HEAD have no body and so no code."""

_UNREACHABLE = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.ReadTimeoutError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.MetadataRetrievalError,
    boto.SSOError,
)


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Whom and as whom one asks, in words that may be shown. `credential`: "with profile 'x'"."""

    endpoint: str
    credential: str
    profile: str = ""
    ca_bundle: str = ""


@contextmanager
def translated(what: str, asker: Asker) -> Iterator[None]:
    """boto3's exceptions become ours; `what` was asked for."""
    try:
        yield
    except boto.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise s3_error(code, status, what, asker) from error
    except boto.BotoCoreError as error:
        raise _boto_error(error, what, asker) from error
    except RuntimeError as error:  # what botocore raises when refreshed credentials are as old as the ones before
        raise OriginForbidden(
            f"{what}: the credentials have ended and could not be renewed",
            hint=f"the request was to be made {asker.credential}",
        ) from error


def s3_error(code: str, status: int, what: str, asker: Asker) -> CacheAgentError:
    """The error that a server's answer stands for."""
    kind, hint = _CODES.get(code) or _STATUSES.get(status) or _otherwise(status)
    says = code if code and not code.isdecimal() else f"status {status}"
    if kind is OriginForbidden:
        hint = f"the request was made {asker.credential}; {hint}"
    return kind(f"{what}: {asker.endpoint} answered {says[:80]}", hint=hint)


def _otherwise(status: int) -> _Meaning:
    if status >= 500:
        return OriginUnavailable, "the trouble is at the server; try again later"
    return OriginWrong, "is the endpoint an S3 server?"


def _boto_error(error: boto.BotoCoreError, what: str, asker: Asker) -> CacheAgentError:
    endpoint, kind = asker.endpoint, type(error).__name__
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return untrusted_certificate(endpoint, asker.ca_bundle)
    if isinstance(error, boto.FlexibleChecksumError):
        return ChecksumMismatch(f"{what}: the bytes do not match the checksum that {endpoint} sent with them")
    if isinstance(error, _UNREACHABLE):
        return OriginUnavailable(
            f"{what}: {endpoint} cannot be reached: {kind}",
            hint="is the server up, and is the way to it open from this node?",
        )
    if isinstance(error, boto.ProfileNotFound):
        return ConfigError(
            f"there is no AWS profile {asker.profile!r}",
            hint="credential names a profile in the AWS configuration files where the agent runs",
        )
    if isinstance(error, _NO_CREDENTIALS):
        return OriginForbidden(f"{what}: no credentials could be had: {kind}", hint="see boto3's credential chain")
    if isinstance(error, boto.ParamValidationError):
        return UsageError(f"{what}: boto3 refuses the names in it", hint="are bucket and prefix right?")
    return ConfigError(f"{what}: boto3 gave up: {kind}", hint="look at the AWS configuration files and variables")
