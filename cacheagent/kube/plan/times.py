"""Kubernetes' points in time (RFC 3339) as seconds since the epoch, and back. Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def seconds_of(written: str) -> float:
    """Seconds since the epoch; 0 for what is absent or no time."""
    try:
        return datetime.fromisoformat(written).timestamp() if written else 0.0
    except ValueError:
        return 0.0


def written_time(seconds: float) -> str:
    """As the API server writes `metav1.Time`: whole seconds, UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
