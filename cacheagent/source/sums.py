"""`SHA256SUMS` as GNU coreutils writes it: the checksum list of HTTPS origins and of trees on a mount. Pure."""

from __future__ import annotations

import re

from cacheagent.errors import OriginWrong

SUMS_NAME = "SHA256SUMS"
SUMS_LIMIT_BYTES = 64 * 1024 * 1024
"""A list of half a million files. Chosen, not measured."""

_LINE = re.compile(r"(\\?)([0-9A-Fa-f]{64}) [ *](.+)")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


def parse_sums(body: bytes, where: str) -> dict[str, str]:
    """Path -> SHA-256 (lower-case hex), in the list's order. Text and binary markers and escaped names (a leading
    backslash) are understood, `./` is dropped, empty lines and `#` comments are skipped.

    Raises OriginWrong on any other line and on a path that is listed twice with two checksums.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OriginWrong(f"{where} is not UTF-8 text (byte {error.start})") from error
    sums: dict[str, str] = {}
    for number, raw_line in enumerate(text.split("\n"), start=1):
        line = raw_line.removesuffix("\r")
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise OriginWrong(
                f"{where} line {number} is not '<64 hex digits>  <path>': {line[:80]!r}",
                hint="write the list with: sha256sum * > SHA256SUMS",
            )
        escaped, value, name = match.groups()
        path = _unescape(name, f"{where} line {number}") if escaped else name
        path = path.removeprefix("./")
        if sums.setdefault(path, value.lower()) != value.lower():
            raise OriginWrong(f"{where} line {number} lists {path[:200]!r} a second time with another checksum")
    return sums


def _unescape(name: str, where: str) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[0] not in _ESCAPES:
            raise OriginWrong(f"{where} has an unknown escape {match[0]!r} in its file name")
        return _ESCAPES[match[0]]

    return re.sub(r"\\.?", replace, name)
