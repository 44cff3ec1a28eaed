"""What the scenarios measured, for people and for the README: reports/e2e/figures.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from tests.e2e.cluster.binaries import ROOT
from tests.e2e.cluster.waiting import say

FIGURES = ROOT / "reports/e2e/figures.json"


def report(name: str, **figures: Any) -> None:
    """Keep figures under a name; those of an earlier run under the same name are replaced."""
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    known[name] = {key: rounded(value) for key, value in figures.items()}
    FIGURES.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    say(f"{name}: {json.dumps(known[name])}")


def rounded(value: Any) -> Any:
    """Seconds to a millisecond; lists of them too."""
    if isinstance(value, float):
        return round(value, 3)
    return [rounded(each) for each in value] if isinstance(value, list) else value


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
