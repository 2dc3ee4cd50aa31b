"""Calls per minute, limited exactly: in no span of 60 s is more admitted than a limit says. Pure.

Every admission is kept until 60 s after it. Where a limit is high, those of one second are kept as one, with
the time of its last: they are forgotten up to a second late, never early, and a window stays small.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from math import ceil

from servestate.planner.access import Caller, Kind
from servestate.planner.table import Limit

SPAN_S = 60.0
DISTINCT_CALLERS = 10_000
"""How many callers one limit tells apart; beyond it the one that has not called for longest is forgotten."""
_GRAIN_S = 1.0
_MOST_KEPT_SINGLY = 60

CallerKey = tuple[str, str]


def key_of(caller: Caller) -> CallerKey:
    """What tells callers apart: kind and name, or the token where no principals are known."""
    return ("token", caller.token) if caller.token else (caller.kind, caller.name)


class Window:
    """What was admitted in the last 60 s of at most `most` calls. Times are of one clock that never goes
    back; `full` has to be asked before `add`."""

    __slots__ = ("_began", "_counts", "_most", "_times", "_total")

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: deque[float] = deque()  # of the last admission of each entry
        self._counts: deque[int] = deque()
        self._began = 0.0  # the first admission of the newest entry
        self._total = 0

    def full(self, now: float) -> bool:
        """Whether one more call now would be too many."""
        times = self._times
        while times and now - times[0] >= SPAN_S:
            times.popleft()
            self._total -= self._counts.popleft()
        return self._total >= self._most

    def wait(self, now: float) -> float:
        """Seconds until a full window has room."""
        return self._times[0] + SPAN_S - now

    def add(self, now: float) -> None:
        """Count a call."""
        self._total += 1
        if self._times and self._most > _MOST_KEPT_SINGLY and now - self._began < _GRAIN_S:
            self._times[-1] = now
            self._counts[-1] += 1
        else:
            self._began = now
            self._times.append(now)
            self._counts.append(1)


class _Together:
    """One window for all whom a limit is for."""

    __slots__ = ("_window",)

    def __init__(self, calls: int) -> None:
        self._window = Window(calls)

    def window(self, caller: Caller, now: float) -> Window:
        return self._window


class _Each:
    """A window for each caller, the one that called last at the end."""

    __slots__ = ("_calls", "_windows")

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._windows: OrderedDict[CallerKey, Window] = OrderedDict()

    def window(self, caller: Caller, now: float) -> Window:
        key = key_of(caller)
        known = self._windows.get(key)
        if known is not None:
            self._windows.move_to_end(key)
            return known
        if len(self._windows) >= DISTINCT_CALLERS:
            self._windows.popitem(last=False)
        made = self._windows[key] = Window(self._calls)
        return made


class CallRates:
    """All limits of one endpoint, which hold at once. Those that stood the same `before` keep their counts.

    A limit that names a user or a service principal stands in the place of what each user may by default; the
    members of a group share the limit of their group, and all callers that of the endpoint.
    """

    __slots__ = ("_counted", "_named", "refused")

    def __init__(self, limits: Iterable[Limit], before: CallRates | None = None) -> None:
        known = before._counted if before is not None else {}
        self._counted: dict[Limit, _Together | _Each] = {
            limit: known.get(limit) or (_Each if _is_default(limit) else _Together)(limit.calls)
            for limit in limits
        }
        self._named = {(limit.key, limit.principal) for limit in self._counted if limit.principal}
        self.refused: int = before.refused if before is not None else 0

    def admit(self, caller: Caller, now: float) -> int:
        """0 if the call may be made, which is then counted; else after how many whole seconds, 1 to 60, it
        may be tried again. What one limit refuses is counted by none."""
        windows = [counted.window(caller, now) for counted in self._for(caller)]
        waits = [window.wait(now) for window in windows if window.full(now)]
        if waits:
            self.refused += 1
            return min(max(ceil(max(waits)), 1), int(SPAN_S))
        for window in windows:
            window.add(now)
        return 0

    def _for(self, caller: Caller) -> Iterator[_Together | _Each]:
        of_its_own = _names(caller) in self._named
        for limit, counted in self._counted.items():
            if _is_default(limit):
                if not of_its_own:
                    yield counted
            elif (
                limit.key == "endpoint"
                or _names(caller) == (limit.key, limit.principal)
                or (limit.key == "user_group" and limit.principal in caller.groups)
            ):
                yield counted


def _is_default(limit: Limit) -> bool:
    return limit.key == "user" and not limit.principal


def _names(caller: Caller) -> tuple[str, str]:
    """The key and the principal of a limit that is for this very caller."""
    return ("user" if caller.kind is Kind.USER else "service_principal"), caller.name
