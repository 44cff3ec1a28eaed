"""Waiting for a condition, never for a time; a failure says what was seen last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def say(sentence: str) -> None:
    """A line of progress for whoever waits."""
    print(f"cluster: {sentence}", flush=True)  # noqa: T201


class NotSeen(AssertionError):
    """What was waited for did not come within its limit."""


def wait_until(condition: Callable[[], T], what: str, limit: float = 60.0, *, pause: float = 0.2) -> T:
    """Return the first true answer of `condition`, asked every `pause` seconds for at most `limit` seconds.

    An exception of the condition counts as "not yet", since things come and go in a cluster; but not `NotSeen` of an
    inner wait, nor a programming error (`TypeError`, `AttributeError`, `NameError`), which are raised at once.
    Raises `NotSeen` with the last answer or exception.
    """
    deadline = time.monotonic() + limit
    while True:
        try:
            answer = condition()
        except (NotSeen, TypeError, AttributeError, NameError):
            raise
        except Exception as error:
            last = f"{type(error).__name__}: {error}"
        else:
            if answer:
                return answer
            last = repr(answer)
        if time.monotonic() > deadline:
            raise NotSeen(f"{what}: not within {limit:.0f} s. Last seen: {last[-3000:]}")
        time.sleep(pause)
