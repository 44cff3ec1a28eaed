"""The tier of real engines: `make test-stacks` (`pytest -m stacks`) runs it, and every other run leaves it out:
an engine takes gigabytes and minutes."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import cluster, namespace, product, pytest_runtest_makereport

__all__ = ["cluster", "namespace", "product", "pytest_runtest_makereport"]  # of the cluster, where a stack needs one

MARKER = "stacks"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tier where the run didn't ask for it by its marker."""
    if MARKER in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker(MARKER)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(MARKER)]
