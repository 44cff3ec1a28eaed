"""Sizes, rates and durations as people write them: `10GiB`, `200MB/s`, `5m`. Pure.

Each is a number of its base unit (bytes, bytes a second, seconds), so that a value once parsed needs no unit any more.
"""

from __future__ import annotations

import re
from typing import Final, Self

_SIZE_UNITS: Final = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, letter in enumerate("kMGTP", start=1)
}
_BIT_UNITS: Final = {f"{letter}bit": 1000**power / 8 for power, letter in enumerate(("", "k", "M", "G", "T"))}
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:ms|s|m|h|d|w)\s*)+")
_DURATION_TERM: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")


class Size(int):
    """A number of bytes."""

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read `10GiB`, `1.5TB`, `4096`. Raises ValueError that says what is expected."""
        if isinstance(written, int) and not isinstance(written, bool) and written >= 0:
            return cls(written)
        if isinstance(written, str) and (size := _amount(written, _SIZE_UNITS)) is not None:
            return cls(round(size))
        raise ValueError(f"expected a size such as 10GiB or 500MB, got {written!r}")


class Rate(int):
    """A number of bytes a second."""

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read `200MB/s`, `1GiB/s`, `10Gbit/s`. Raises ValueError that says what is expected."""
        if written == 0 and not isinstance(written, bool):
            return cls(0)
        if isinstance(written, str) and written.endswith("/s"):
            rate = _amount(written.removesuffix("/s"), _SIZE_UNITS | _BIT_UNITS)
            if rate is not None:
                return cls(round(rate))
        raise ValueError(f"expected a rate such as 200MB/s or 10Gbit/s (or 0 for no limit), got {written!r}")


def rate_text(bytes_per_s: int) -> str:
    """As `Rate.parse` reads it, without rounding: `500MB/s`."""
    for unit in "TGMk":
        if bytes_per_s and bytes_per_s % _SIZE_UNITS[f"{unit}B"] == 0:
            return f"{bytes_per_s // _SIZE_UNITS[f'{unit}B']}{unit}B/s"
    return f"{bytes_per_s}B/s"


class Duration(float):
    """A number of seconds."""

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read `30s`, `5m`, `1h30m`, `250ms`, `7d`. Raises ValueError that says what is expected."""
        if isinstance(written, str) and _DURATION.fullmatch(written.strip()):
            return cls(sum(float(n) * _DURATION_UNITS[unit] for n, unit in _DURATION_TERM.findall(written)))
        if written == 0 and not isinstance(written, bool):
            return cls(0)
        raise ValueError(f"expected a duration such as 30s, 5m or 1h30m, got {written!r}")


class Fraction(float):
    """A part of a whole, between 0 and 1."""

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read `90%` or `0.9`. Raises ValueError that says what is expected."""
        if isinstance(written, str) and re.fullmatch(r"\d+(\.\d+)?%", written):
            written = float(written[:-1]) / 100
        if isinstance(written, int | float) and not isinstance(written, bool) and 0 <= written <= 1:
            return cls(written)
        raise ValueError(f"expected a part of the whole such as 90% or 0.9, got {written!r}")


def _amount(written: str, units: dict[str, int] | dict[str, float]) -> float | None:
    match = _AMOUNT.fullmatch(written.strip())
    if match is None:
        return None
    number, unit = match.groups()
    unit = "k" + unit[1:] if unit.startswith("K") else unit  # KiB and KB are written as often as kiB and kB
    return float(number) * units[unit] if unit in units else None


def size_text(count: float) -> str:
    """Bytes as people say them, decimal units as vendors and clouds use: `141 GB`, `1.5 GB`, `90.9 MB`."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
