"""What an S3 error code means for the one who asked. Pure: the code and the status come in, an error goes out.

Servers' own messages are not passed on: they may hold what was signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cacheagent.errors import (
    CacheAgentError,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginUnavailable,
    OriginWrong,
    SourceChanged,
)

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


def s3_error(code: str, status: int, *, what: str, endpoint: str, credential: str) -> CacheAgentError:
    """The error that an answer stands for. `credential` says in words as whom the request was made."""
    kind, hint = _CODES.get(code) or _STATUSES.get(status) or _otherwise(status)
    says = code if code and not code.isdecimal() else f"status {status}"
    if kind is OriginForbidden:
        hint = f"the request was made {credential}; {hint}"
    return kind(f"{what}: {endpoint} answered {says[:80]}", hint=hint)


def _otherwise(status: int) -> _Meaning:
    if status >= 500:
        return OriginUnavailable, "the trouble is at the server; try again later"
    return OriginWrong, "is the endpoint an S3 server?"
