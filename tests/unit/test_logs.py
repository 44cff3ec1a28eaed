"""One event a line, for machines or for people, and no secret in either."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from cacheagent.config import LogSettings
from cacheagent.logs import redact, start_logging

SIGNED = (
    "https://bucket.s3.amazonaws.com/llama/model-1.safetensors?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20260131%2Feu-central-1%2Fs3%2Faws4_request&X-Amz-Date=20260131T120000Z"
    "&X-Amz-Expires=3600&X-Amz-Security-Token=FwoGZXIvYXdzEBYaDH&X-Amz-Signature=3f1a5bc9d2"
)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """The process's logging is global; what a test sets ends with it."""
    root, ours = logging.getLogger(), logging.getLogger("cacheagent")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], _, _ = before
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logging.captureWarnings(False)


def written(settings: LogSettings, stream: io.StringIO | None = None) -> tuple[logging.Logger, io.StringIO]:
    """A logger of ours and where its lines go."""
    stream = stream or io.StringIO()
    start_logging(settings, stream)
    return logging.getLogger("cacheagent.test"), stream


def test_a_json_line_holds_time_level_message_and_the_events_fields() -> None:
    """Each line is one object; what was passed as extra stands beside the message."""
    logger, stream = written(LogSettings(format="json"))
    logger.info("model is ready", extra={"model": "llama", "bytes_fetched": 141})
    event = json.loads(stream.getvalue())
    assert event.pop("time").endswith("Z")
    assert event == {
        "level": "info",
        "logger": "cacheagent.test",
        "message": "model is ready",
        "model": "llama",
        "bytes_fetched": 141,
    }


def test_a_traceback_stays_within_its_line() -> None:
    """A line is an event, also when it is a defect."""
    logger, stream = written(LogSettings(format="json"))
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logger.exception("a defect")
    (line,) = stream.getvalue().splitlines()
    assert "RuntimeError: boom" in json.loads(line)["trace"]


def test_people_read_a_sentence() -> None:
    """No braces on a terminal; fields follow the sentence, a traceback follows the line."""
    logger, stream = written(LogSettings(format="human"))
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logger.warning("model failed", extra={"model": "llama"}, exc_info=True)
    first, *rest = stream.getvalue().splitlines()
    assert first[8:] == " warning model failed model=llama"
    assert rest[-1] == "RuntimeError: boom"


def test_the_form_follows_where_it_goes() -> None:
    """auto: plain on a terminal, JSON in a pipe."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    logger, pipe = written(LogSettings())
    logger.info("hello")
    assert pipe.getvalue().startswith("{")
    logger, terminal = written(LogSettings(), Terminal())
    logger.info("hello")
    assert terminal.getvalue().endswith("info    hello\n")


def test_level_is_ours_and_other_libraries_only_warn() -> None:
    """Their debugging prints requests and headers; it is not for our log whatever the level."""
    logger, stream = written(LogSettings(format="human", level="debug"))
    logger.debug("ours")
    logging.getLogger("botocore").info("theirs")
    logging.getLogger("botocore").warning("their warning")
    assert [line.split(maxsplit=2)[2] for line in stream.getvalue().splitlines()] == ["ours", "their warning"]
    logger, stream = written(LogSettings(format="human", level="error"))
    logger.warning("not now")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (SIGNED, "3f1a5bc9d2"),
        (SIGNED, "AKIAIOSFODNN7EXAMPLE"),
        (SIGNED, "FwoGZXIvYXdzEBYaDH"),
        ("https://cdn-lfs.hf.co/x?Expires=1&Policy=eyJTdGF0ZW1lbnQi&Signature=abc~def&Key-Pair-Id=K24J24", "abc~def"),
        ("https://cdn-lfs.hf.co/x?Expires=1&Policy=eyJTdGF0ZW1lbnQi&Signature=abc~def&Key-Pair-Id=K24J24", "eyJTdGF0"),
        ("https://account.blob.core.windows.net/x?sv=2024&sig=Zm9vYmFy%3D", "Zm9vYmFy"),
        ("Authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
        ("{'Authorization': 'AWS4-HMAC-SHA256 Credential=AKIAX/2026, Signature=beef77'}", "beef77"),
        ('{"authorization": "Basic dXNlcjpwYXNz", "range": "bytes=0-1"}', "dXNlcjpwYXNz"),
        ("sent Bearer abcdefgh12345678 to the Hub", "abcdefgh12345678"),
        ("token hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345 was refused", "hf_AbCdEf"),
        ("https://user:hunter2@mirror.example/models/", "hunter2"),
        ("https://tokenonly@mirror.example/models/", "tokenonly"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
        ("{'aws_session_token': 'IQoJb3JpZ2lu'}", "IQoJb3JpZ2lu"),
        ("key ASIAIOSFODNN7EXAMPLE is not known", "ASIAIOSFODNN7EXAMPLE"),
    ],
)
@pytest.mark.parametrize("form", ["json", "human"])
@pytest.mark.parametrize("way", ["message", "argument", "field", "exception"])
def test_a_secret_is_hidden_however_it_comes(text: str, secret: str, form: str, way: str) -> None:
    """As message, argument, field or in an exception's text: the finished line is what is searched."""
    logger, stream = written(LogSettings(format=form))  # type: ignore[arg-type]
    match way:
        case "message":
            logger.warning(text)
        case "argument":
            logger.warning("origin said %s", text)
        case "field":
            logger.warning("origin said", extra={"answer": text})
        case _:
            try:
                raise RuntimeError(text)
            except RuntimeError:
                logger.exception("failed")
    assert secret not in stream.getvalue()
    assert "[hidden]" in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "llama-3-70b: fetching 141 GB in 30 files from s3://models/llama-3-70b",
        "https://minio.example:9000/models/llama?versionId=3&partNumber=1",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "/var/lib/cacheagent/models/sha256-9f86d081/files/model@2.safetensors",
        "the basic rule: authorization is the source's part",
        "hf://org/name@main",
    ],
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    """A net that catches everything would hide what the on-call looks for."""
    assert redact(text) == text
