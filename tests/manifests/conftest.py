"""Renderings, made once each: helm takes some tenths of a second."""

from __future__ import annotations

import functools

import pytest

from tests.manifests.chart import SETS, Manifests, parse, render


@functools.cache
def _rendered(name: str) -> Manifests:
    return parse(render(SETS[name]))


@pytest.fixture
def default() -> Manifests:
    """The chart without any values."""
    return _rendered("default")


@pytest.fixture
def everything() -> Manifests:
    """The chart with all that can be turned on."""
    return _rendered("everything")


@pytest.fixture(params=SETS)
def any_set(request: pytest.FixtureRequest) -> Manifests:
    """Each of the sets of values."""
    name: str = request.param
    return _rendered(name)
