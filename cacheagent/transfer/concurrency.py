"""How many connections to one origin: as many as still bring something. Pure; time is an argument (seconds).

Slow start, then additive increase: a step up is kept when goodput grew by at least a quarter of what the new
connections would bring if each were as good as the old ones; else it is taken back. An origin that throttles or stops
answering gets far fewer at once.
"""

from __future__ import annotations

from statistics import fmean
from typing import Final

STEP: Final = 4
SETTLE_S: Final = 0.4
"""New connections need a round trip and TCP's own start before they count. Chosen."""
SAMPLES: Final = 2
"""Per judgement: with one each half second, a step takes 1.5 s and the ramp from 8 to 40 takes 6 s. Chosen."""
ENOUGH_BYTES: Final = 1024 * 1024
"""What each connection must have brought on average before their number is judged. They are counted by the half MiB, so
on a thin link one second has none of them and the next one all. Chosen."""
WORTH: Final = 0.25
HOLD_S: Final = 15.0
"""After a step that brought nothing, or a decrease, nothing is tried for this long. Chosen."""
DECREASE_INTERVAL_S: Final = 2.0
"""Connections that fail together are one event. Chosen."""


class ConnectionLimit:
    """The number of connections that may be open to one origin now: `current`, between 1 and `maximum`. `step`: how
    many more are tried at once. `hold_s`: how long nothing is tried after that brought nothing."""

    def __init__(self, *, initial: int, maximum: int, step: int = STEP, hold_s: float = HOLD_S) -> None:
        self.current = min(initial, maximum)
        self._maximum = maximum
        self._least_step = step
        self._hold_s = hold_s
        self._ramping = True
        self._base: tuple[int, float] | None = None
        self._samples: list[float] = []
        self._brought = 0.0
        self._sampled_at = float("inf")
        self._settled_at = 0.0
        self._hold_until = 0.0
        self._decreased_at = float("-inf")

    def sample(self, now: float, goodput_bytes_per_s: float, *, saturated: bool) -> None:
        """Goodput since the last sample. `saturated`: all `current` connections were in use and more work waited;
        otherwise the figure says nothing about their number.
        """
        passed_s, self._sampled_at = max(0.0, now - self._sampled_at), now
        if not saturated or now < self._settled_at:
            self._forget()
            return
        self._samples.append(goodput_bytes_per_s)
        self._brought += goodput_bytes_per_s * passed_s
        if now < self._hold_until:
            del self._samples[:-SAMPLES]
            self._brought = 0.0
            return
        if len(self._samples) < SAMPLES or self._brought < ENOUGH_BYTES * self.current:
            return
        goodput = fmean(self._samples)
        self._forget()
        if self._base is None or self._was_worth(goodput):
            self._step_up(now, goodput)
        else:
            self._step_back(now)

    def throttled(self, now: float) -> None:
        """The origin said that it is too much."""
        self._decrease(now, 0.5)

    def timed_out(self, now: float) -> None:
        """A connection brought nothing for too long, which is how overload looks where nobody says so."""
        self._decrease(now, 0.7)

    def _was_worth(self, goodput: float) -> bool:
        assert self._base is not None
        connections, before = self._base
        return goodput >= before * (1 + WORTH * (self.current / connections - 1))

    def _step_up(self, now: float, goodput: float) -> None:
        if self.current >= self._maximum:
            self._base = None
            return
        step = max(self._least_step, self.current // 2 if self._ramping else 0)
        self._base = (self.current, goodput)
        self.current = min(self.current + step, self._maximum)
        self._settled_at = now + SETTLE_S

    def _step_back(self, now: float) -> None:
        assert self._base is not None
        self.current = self._base[0]
        self._end_probe(now)

    def _decrease(self, now: float, factor: float) -> None:
        if now - self._decreased_at < DECREASE_INTERVAL_S:
            return
        self._decreased_at = now
        self.current = max(1, int(self.current * factor))
        self._end_probe(now)

    def _forget(self) -> None:
        self._samples.clear()
        self._brought = 0.0

    def _end_probe(self, now: float) -> None:
        self._base = None
        self._ramping = False
        self._forget()
        self._settled_at = now + SETTLE_S
        self._hold_until = now + self._hold_s


class FixedLimit(ConnectionLimit):
    """A number that somebody decided."""

    def __init__(self, connections: int) -> None:
        super().__init__(initial=connections, maximum=connections)

    def sample(self, now: float, goodput_bytes_per_s: float, *, saturated: bool) -> None:
        """Changes nothing."""

    def _decrease(self, now: float, factor: float) -> None:
        """Changes nothing: whoever fixed it knows the origin; pauses still hold."""
