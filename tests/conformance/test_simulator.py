"""The simulator is a source like any other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.suite import SourceConformance
from tests.fakes.simulated import SimulatedOrigin, SimulatedSource


class Simulated:
    """A simulated origin that wants a token."""

    secrets = ("token-of-the-simulator",)
    keeps_old_versions = False

    def __init__(self, here: SimulatedOrigin, empty: SimulatedOrigin) -> None:
        self._here, self._empty = here, empty

    def fill(self, files: dict[str, bytes]) -> None:
        for path, body in files.items():
            self._here.put(path, body)

    def source(self) -> SimulatedSource:
        return self._here.source(credential="reader")

    def stranger(self) -> SimulatedSource:
        return self._here.source()

    def nowhere(self) -> SimulatedSource:
        return self._empty.source()

    def elsewhere(self) -> SimulatedSource:
        return self._here.source(credential="other")


@pytest.fixture
def origin() -> Iterator[Simulated]:
    with SimulatedOrigin(token=Simulated.secrets[0]) as here, SimulatedOrigin() as empty:
        yield Simulated(here, empty)


class TestSimulator(SourceConformance):
    """All of the suite."""
