"""Fixtures of the fault tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.scene import Cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache directory that does not exist yet."""
    return Cache(tmp_path / "cache")
