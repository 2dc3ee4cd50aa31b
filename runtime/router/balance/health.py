"""Whether one replica is well, judged by the answers it gives and by probes. Pure: time is an argument, on a
clock that only grows.

| event             | well                  | ejected                     | trial                  |
| ----------------- | --------------------- | --------------------------- | ---------------------- |
| request succeeded | -                     | well                        | well                   |
| request failed    | one too many: ejected | due: ejected, twice as long | ejected, twice as long |
| request abandoned | -                     | -                           | ejected, due           |
| chosen            | -                     | due: trial                  | lapsed: trial          |
| probe failed      | ejected (`HEALTH`)    | put off (`HEALTH`)          | ejected (`HEALTH`)     |
| probe went well   | -                     | for `HEALTH`: due           | -                      |

- One too many: `errors` in a row, or `error_share` of at least `window_requests` in `window_s`.
- Due: the ejection's time is over. Twice as long: up to `max_ejection_s`; being well again forgets that.
- A trial is the one request at a time that a replica gets when its ejection is due. One that its client
  abandoned says nothing, and the next request is a trial; one without any outcome lapses after `trial_s`.
- Only what was sent since the state began counts against or for a replica that is not well: answers to what
  was sent before come late, and say what is known. A replica that is used while ejected, because there is
  no better one, is well with its first success, and not ejected any longer for its failures.
- Probes that fail keep a replica ejected for as long as they do; a probe that goes well ends only that, as
  a server may say that it is well and answer every request with an error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Any, Final

from servestate.runtime.router.balance.policy import HealthPolicy

HEALTH: Final = "health"
"""The reason of an ejection by probes."""


@dataclass(frozen=True, slots=True)
class Well:
    """Gets its share."""


@dataclass(frozen=True, slots=True)
class Ejected:
    """Gets nothing before `until` if there is another; the `times`-th time in a row."""

    since: float
    until: float
    reason: str
    times: int


@dataclass(frozen=True, slots=True)
class Trial:
    """Has got one request since, after `ejection`, and gets no other before the trial lapses."""

    since: float
    lapses: float
    ejection: Ejected


State = Well | Ejected | Trial


class Health:
    """The health of one replica. `closed_until` is when it may be chosen again, in the past while `well`."""

    __slots__ = (
        "_bad",
        "_bad_before",
        "_good",
        "_good_before",
        "_half_ends",
        "_in_a_row",
        "_policy",
        "closed_until",
        "state",
        "well",
    )

    def __init__(self, policy: HealthPolicy) -> None:
        self._policy = policy
        self.state: State = Well()
        self.well = True
        self.closed_until = -inf
        self._in_a_row = 0
        self._good = self._bad = self._good_before = self._bad_before = 0
        self._half_ends = -inf

    def succeeded(self, now: float, sent: float = inf) -> None:
        """A request that was sent at `sent` (left out: lately) was answered, whatever with, but no 5xx."""
        if now >= self._half_ends:
            self._turn(now)
        self._good += 1
        self._in_a_row = 0
        if not self.well and sent >= self._since():
            self._be_well()

    def failed(self, now: float, reason: str, sent: float = inf) -> bool:
        """A request that was sent at `sent` was not answered, or with a 5xx; `reason` is a word for it.
        Whether the replica is ejected because of it."""
        if now >= self._half_ends:
            self._turn(now)
        self._bad += 1
        self._in_a_row += 1
        match self.state:
            case Well():
                if not self._too_many():
                    return False
                self._eject(now, reason, 1)
            case Ejected(since, until, _, times):
                if sent < since or now < until:
                    return False
                self._eject(now, reason, times + 1)
            case Trial(since, _, ejection):
                if sent < since:
                    return False
                self._eject(now, reason, ejection.times + 1)
        return True

    def abandoned(self, sent: float = inf) -> None:
        """A request that was sent at `sent` ended without saying anything of the replica: its client left."""
        if isinstance(self.state, Trial) and sent >= self.state.since:
            self._close(self.state.ejection)

    def chosen(self, now: float) -> None:
        """A request goes to the replica, be it only because there is no better one."""
        if isinstance(self.state, Well) or now < self.closed_until:
            return
        ejection = self.state.ejection if isinstance(self.state, Trial) else self.state
        self.state = Trial(now, now + self._policy.trial_s, ejection)
        self.closed_until = self.state.lapses

    def probe_failed(self, now: float) -> bool:
        """Probes say that the replica is not well. Whether it is ejected because of it."""
        match self.state:
            case Well():
                self._eject(now, HEALTH, 1)
            case Ejected(since, until, _, times):
                self._close(Ejected(since, max(until, now + self._policy.ejection_s), HEALTH, times))
                return False
            case Trial(_, _, ejection):
                self._close(Ejected(now, now + self._policy.ejection_s, HEALTH, ejection.times))
        return True

    def probe_succeeded(self, now: float) -> None:
        """A probe says that the replica is well."""
        state = self.state
        if isinstance(state, Ejected) and state.reason == HEALTH and state.until > now:
            self._close(replace(state, until=now))

    def ejected_until(self) -> float:
        """When the ejection ends or ended, before which nothing was to be expected of the replica."""
        match self.state:
            case Well():
                return -inf
            case Ejected(_, until, _, _):
                return until
            case Trial(_, _, ejection):
                return ejection.until

    def report(self, now: float) -> dict[str, Any]:
        """The state in words, for how many seconds it has lasted, and why."""
        match self.state:
            case Well():
                return {"state": "healthy"}
            case Ejected(since, until, reason, times):
                left = max(until - now, 0.0)
                # Rounded up: 0 says that the ejection is over.
                return _report("ejected", reason, times, now - since) | {"left_s": ceil(left * 1000) / 1000}
            case Trial(since, _, ejection):
                return _report("trial", ejection.reason, ejection.times, now - since)

    def _since(self) -> float:
        return -inf if isinstance(self.state, Well) else self.state.since

    def _be_well(self) -> None:
        self.state = Well()
        self.well = True
        self.closed_until = -inf
        self._in_a_row = self._good = self._bad = self._good_before = self._bad_before = 0

    def _eject(self, now: float, reason: str, times: int) -> None:
        policy = self._policy
        # Bounded, as the power of two is soon beyond any float.
        length = min(policy.ejection_s * 2.0 ** min(times - 1, 64), policy.max_ejection_s)
        self._close(Ejected(now, now + length, reason, times))

    def _close(self, ejection: Ejected) -> None:
        self.state = ejection
        self.well = False
        self.closed_until = ejection.until

    def _too_many(self) -> bool:
        policy = self._policy
        if self._in_a_row >= policy.errors:
            return True
        bad = self._bad + self._bad_before
        count = bad + self._good + self._good_before
        return count >= policy.window_requests and bad >= count * policy.error_share

    def _turn(self, now: float) -> None:
        """Begin the half of the window that `now` is in. The window is this half and the one before: two
        counts instead of a time for every request."""
        half = self._policy.window_s / 2
        if now < self._half_ends + half:
            self._good_before, self._bad_before = self._good, self._bad
        else:
            self._good_before = self._bad_before = 0
        self._good = self._bad = 0
        self._half_ends = (now // half + 1) * half


def _report(state: str, reason: str, times: int, for_s: float) -> dict[str, Any]:
    return {"state": state, "reason": reason, "times": times, "for_s": round(for_s, 3)}
