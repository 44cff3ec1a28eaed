"""Something that takes a while, as a person watches it: live on a terminal, a line now and then in a pipe, JSON events
for machines. What is watched says how it is told; this says when and where."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import click

from cacheagent.cli.output import Format, print_json

T = TypeVar("T")
Shown_contra = TypeVar("Shown_contra", contravariant=True)


class Watcher(Protocol[Shown_contra]):
    """Shows the states of one thing, from the first to the last."""

    def show(self, state: Shown_contra, /) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Words(Generic[T]):
    """How one kind of state is told. `line`: for people; empty for nothing. `mark`: what is told at once when it
    changes; where nothing but figures differ, a line is enough every `interval_s`. `event`: for machines. `live`: on a
    terminal."""

    line: Callable[[T], str]
    mark: Callable[[T], object]
    interval_s: float
    event: Callable[[T], Any]
    live: Callable[[], Watcher[T]]


def watcher(output: Format, words: Words[T]) -> Watcher[T]:
    """What fits where the output goes. Progress is on standard error, so that standard output holds only the result;
    JSON events are the result."""
    if output == "json":
        return _JsonLines(words)
    return words.live() if sys.stderr.isatty() else _Lines(words)


class Quiet:
    """Needs neither beginning nor end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _JsonLines(Quiet, Generic[T]):
    def __init__(self, words: Words[T]) -> None:
        self._words = words
        self._last: T | None = None

    def show(self, state: T, /) -> None:
        if state != self._last:
            self._last = state
            print_json(self._words.event(state))


class _Lines(Quiet, Generic[T]):
    def __init__(self, words: Words[T]) -> None:
        self._words = words
        self._mark: object = None
        self._line = ""
        self._at = 0.0

    def show(self, state: T, /) -> None:
        line, mark, now = self._words.line(state), self._words.mark(state), time.monotonic()
        is_due = line != self._line and now - self._at >= self._words.interval_s
        if line and (mark != self._mark or is_due):
            self._mark, self._line, self._at = mark, line, now
            click.echo(line, err=True)
