"""When somebody who watches is told something, and where."""

from __future__ import annotations

import json
import sys
import time

import pytest

from cacheagent.cli.watching import Quiet, Words, watcher


class Live(Quiet):
    """A terminal's."""

    def show(self, state: tuple[str, int], /) -> None:
        raise AssertionError("nothing is shown here")


WORDS = Words[tuple[str, int]](
    line=lambda state: "" if state[0] == "over" else f"{state[0]} {state[1]} %",
    mark=lambda state: state[0],
    interval_s=5.0,
    event=lambda state: {"phase": state[0], "percent": state[1]},
    live=Live,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_in_a_pipe_news_are_told_at_once_and_figures_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the result; the same line is not told again, and one that is empty never."""
    with watcher("text", WORDS) as view:
        for seconds, phase, percent in (
            (0, "listing", 0),
            (1, "fetching", 1),
            (1, "fetching", 2),
            (5, "fetching", 3),
            (9, "fetching", 3),
            (0, "over", 100),
        ):
            clock[0] += seconds
            view.show((phase, percent))
    told = capsys.readouterr()
    assert (told.out, told.err.splitlines()) == ("", ["listing 0 %", "fetching 1 %", "fetching 3 %"])


def test_for_machines_every_change_is_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    with watcher("json", WORDS) as view:
        for state in (("fetching", 1), ("fetching", 1), ("fetching", 2), ("over", 100)):
            view.show(state)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["phase"], each["percent"]) for each in told] == [("fetching", 1), ("fetching", 2), ("over", 100)]


def test_a_terminal_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as nobody wants JSON."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(watcher("text", WORDS), Live)
    assert not isinstance(watcher("json", WORDS), Live)
