"""Who did something, and when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who wrote something, when (seconds since the epoch) and through which verb: `apply`, `api`,
    `repair`."""

    by: str
    at: float
    through: str

    def __str__(self) -> str:
        """For people."""
        at = datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"{self.by} at {at}"
