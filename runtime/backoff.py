"""When something that keeps dying is started again. Pure: the time and the randomness come in.

Delays double from 1 s to 300 s, a quarter of each up or down by chance, so that what died together does not
come back together. Ten minutes of health forget everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

FIRST_S = 1.0
LONGEST_S = 300.0
JITTER = 0.25
HEALTHY_S = 600.0
LOOPING_FROM = 3
"""The restart from which on it is called crash-looping."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often it was restarted since it was last healthy for long, and what comes next. Times are seconds
    of one clock; of `next_try` and `healthy_since` one is set at most: it is down, or it is up."""

    restarts: int = 0
    next_try: float | None = None
    healthy_since: float | None = None

    @property
    def crash_looping(self) -> bool:
        """Whether it has been restarted so often that somebody should look after it."""
        return self.restarts >= LOOPING_FROM

    def failed(self, now: float, random: Callable[[], float]) -> Backoff:
        """It has died, or a restart of it has failed. `random` gives a number from 0 to 1."""
        spread = 1 + JITTER * (2 * random() - 1)
        return replace(self, next_try=now + nominal_delay_s(self.restarts) * spread, healthy_since=None)

    def due(self, now: float) -> bool:
        """Whether to restart it now. A time farther off than any delay is a clock that was set back."""
        return self.next_try is not None and not now < self.next_try <= now + LONGEST_S * (1 + JITTER)

    def restarted(self) -> Backoff:
        """It is being started again."""
        return Backoff(self.restarts + 1)

    def healthy(self, now: float) -> Backoff:
        """It is up."""
        if self.healthy_since is None or self.healthy_since > now:
            return replace(self, next_try=None, healthy_since=now)
        return Backoff(healthy_since=self.healthy_since) if now - self.healthy_since >= HEALTHY_S else self


def nominal_delay_s(restarts: int) -> float:
    """The delay before the next restart, after so many, without its jitter."""
    return min(LONGEST_S, FIRST_S * float(2 ** min(restarts, 16)))
