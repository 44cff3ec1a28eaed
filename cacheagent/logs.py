"""Logs: one event a line on standard error, JSON for machines or plain for a terminal, with no secret in it.

Nothing that holds a secret is ever passed to a logger; the redaction here is the second net, applied to the finished
line so that nothing gets around it: not an exception's text, not a library's own message.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Any, Final, TextIO

import msgspec

from cacheagent.config import LogSettings
from cacheagent.progress import JobStatus

_JOBS: Final = logging.getLogger("cacheagent.jobs")

_HIDDEN: Final = "[hidden]"
_SECRETS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # Signed URLs: Amazon (query form), CloudFront and the Hub's storage, Azure (sig).
    (
        re.compile(
            r"(?i)\b(X-Amz-(?:Signature|Credential|Security-Token)|Signature|Policy|Key-Pair-Id|sig|AWSAccessKeyId)"
            r"=[^&\s\"'<>\\,]+"
        ),
        rf"\1={_HIDDEN}",
    ),
    # Headers, as they stand on the wire or in a printed mapping: everything up to the end of the value.
    (
        re.compile(
            r"(?i)(\b(?:proxy-)?authorization|\bx-amz-security-token|\bset-cookie|\bcookie)"
            r"([\"'\\]*\s*[:=]\s*[\"'\\]*)[^\"'\\\r\n}]+"
        ),
        rf"\1\2{_HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {_HIDDEN}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), _HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), _HIDDEN),
    (
        re.compile(
            r"(?i)\b(aws_secret_access_key|aws_session_token|password|secret)([\"'\\]*\s*[:=]\s*[\"'\\]*)[^\s\"'\\,}]+"
        ),
        rf"\1\2{_HIDDEN}",
    ),
    # user:password@ in a URL.
    (re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/@\s\"'\\]+@"), rf"\1{_HIDDEN}@"),
)

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def redact(text: str) -> str:
    """The same text with everything that looks like a secret replaced."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was passed as `extra`: the event's own fields."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class JsonLines(logging.Formatter):
    """`{"time":"2026-01-31T12:00:00.123Z","level":"info","logger":"…","message":"…",<fields>,"trace":"…"}`"""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        event: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        event.update(fields_of(record))
        if record.exc_info:
            event["trace"] = self.formatException(record.exc_info)
        return redact(msgspec.json.encode(event, enc_hook=str).decode())


class HumanLines(logging.Formatter):
    """`12:00:00 warning llama-3-70b: …`, with a traceback below it where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value}" for key, value in fields_of(record).items())
        line = f"{clock} {record.levelname.lower():7} {record.getMessage()}{fields}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return redact(line)


def start_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send all loggers of the process to `stream` (default: standard error) as settled; replaces what was set before.

    Other libraries speak from warning upwards only: their debugging prints requests and headers.
    """
    stream = stream if stream is not None else sys.stderr
    human = settings.format == "human" or (settings.format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanLines() if human else JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("cacheagent").setLevel(settings.level.upper())
    logging.captureWarnings(True)


class JobLog:
    """One line for each step of each job, and none for its progress."""

    def __init__(self) -> None:
        self._phases: dict[tuple[str, str], str] = {}

    def follow(self, status: JobStatus) -> None:
        """Every state of every job passes here, in order."""
        key = (status.name, status.uri)
        if self._phases.get(key) == status.phase and not status.finished:
            return
        self._phases[key] = status.phase
        if status.finished:
            del self._phases[key]
        level = {"failed": logging.WARNING, "ready": logging.INFO, "fetching": logging.INFO}.get(
            status.phase, logging.DEBUG
        )
        _JOBS.log(level, "%s: %s", status.name, status.message or status.phase, extra=_facts(status))


def _facts(status: JobStatus) -> dict[str, Any]:
    """What is worth a field: everything that is set, but the rates that change all the time."""
    facts = msgspec.structs.asdict(status)
    for name in ("message", "rate_bytes_per_s", "eta_s"):
        del facts[name]
    facts["model"], facts["elapsed_s"] = facts.pop("name"), round(status.elapsed_s, 3)
    return {name: value for name, value in facts.items() if value}
