"""Writes docs/metrics.md from the one module that holds all metrics. `tests/unit/test_metrics.py` compares."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cacheagent.metrics import table

DOCUMENT: Final = Path(__file__).parents[1] / "docs/metrics.md"

HEAD: Final = """# Metrics

Prometheus text on `http://<listen>/metrics` and on the agent's socket. Names have base units. Labels are few on
purpose: `model` (a name), `source` (`s3`, `hf`, `https`, `posix`; `disk` for bytes at rest), `result`; never a file, a
pod or a URL.

This page is generated: `python scripts/metrics_table.py` after a change in `cacheagent/metrics.py`.

| name | type | unit | labels | meaning |
|---|---|---|---|---|
"""


def document() -> str:
    """The whole page."""
    return HEAD + "".join(
        f"| `{name}` | {kind} | {unit} | {labels} | {text} |\n" for name, kind, unit, labels, text in table()
    )


if __name__ == "__main__":
    DOCUMENT.write_text(document())
    print(f"wrote {DOCUMENT}")
