"""The limits of one endpoint: calls and tokens a minute, and requests in flight. Exact, over all workers.

In no span of 60 s is more admitted than a limit says. Of tokens, a request counts for what was reserved for
it, and once that is known for what it used, either way at the time of its admission.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final

from servestate.planner.access import Caller, Kind
from servestate.planner.table import Limit
from servestate.runtime.router.quota.memory import Memory
from servestate.runtime.router.quota.mutex import Uncountable
from servestate.runtime.router.quota.windows import SPAN_S, Gauge, Window

CONCURRENCY: Final = "concurrency"
UNCOUNTABLE: Final = "uncountable"
"""What `Denied.limit` says where no limit refuses, but the numbers of the limits cannot be had."""
_KNOWN_CALLERS: Final = 4096
_WHOLE_SPAN: Final = b"1m0s"


@dataclass(frozen=True, slots=True)
class Denied:
    """The request must not run now. `limit` is the one that opens last, `wait_s` the whole seconds until
    then, 1 to 60. `never` says that the request may use more tokens than the limit gives in a minute: waiting
    does not help. `fields` are header lines, each with its end."""

    limit: str
    wait_s: int
    fields: bytes
    never: bool = False


@dataclass(frozen=True, slots=True)
class _Debt:
    """What has to be changed for a request that is over: the entries of its tokens by `more`, and that it is
    no longer in flight."""

    entries: tuple[tuple[Window, int], ...]
    more: int
    gauge: Gauge | None

    def pay(self, now: float) -> None:
        if self.gauge is not None:
            self.gauge.leave(now)
        for window, number in self.entries:
            window.settle(number, self.more)


class Admission:
    """A request that may run, with header lines for its answer, each with its end."""

    __slots__ = ("_entries", "_gauge", "_rates", "_reserved", "fields")

    def __init__(
        self,
        fields: bytes,
        rates: Rates,
        reserved: int,
        entries: tuple[tuple[Window, int], ...],
        gauge: Gauge | None,
    ) -> None:
        self.fields = fields
        self._rates = rates
        self._reserved = reserved
        self._entries = entries
        self._gauge = gauge

    def ended(self, tokens: int | None, now: float) -> None:
        """The request is over, and used so many tokens; None where that is not known, which leaves what was
        reserved. To be called once."""
        more = 0 if tokens is None else tokens - self._reserved
        if self._gauge is not None or (more and self._entries):
            self._rates.settle(_Debt(self._entries if more else (), more, self._gauge), now)


class _Counted:
    """A window, and what is said of it: its limit, and the header lines."""

    __slots__ = ("_after", "_before", "label", "window")

    def __init__(self, label: str, unit: str, window: Window) -> None:
        self.label = label
        self.window = window
        self._before = f"x-ratelimit-limit-{unit}: {window.most}\r\nx-ratelimit-remaining-{unit}: ".encode()
        self._after = f"\r\nx-ratelimit-reset-{unit}: ".encode()

    def fields(self, left: int, reset: bytes) -> bytes:
        """The lines, where so much is left, and all of it again after `reset`."""
        return b"%b%d%b%b\r\n" % (self._before, left if left > 0 else 0, self._after, reset)


@dataclass(frozen=True, slots=True)
class _Place:
    """What counts for `caller`, or for everybody."""

    caller: Caller | None
    calls: tuple[_Counted, ...]
    tokens: tuple[_Counted, ...]


class Rates:
    """All limits of one endpoint, which hold at once: what one refuses is counted by none.

    A limit that names a user or a service principal stands in the place of what each user may by default; the
    members of a group share the limit of their group, and all callers that of the endpoint. Counts belong to
    the endpoint's name and to whom a limit is for: they outlive a table, and a changed limit looks back on
    what was admitted before.

    `refused` and `shadowed` count by limit what this worker refused, or would have. Where `shadow`, nothing
    is refused, and what would be is not counted by the limits either.
    """

    __slots__ = (
        "_debts",
        "_endpoint",
        "_everybody",
        "_gauge",
        "_limits",
        "_memory",
        "_named",
        "_places",
        "_shadow",
        "counts_tokens",
        "refused",
        "shadowed",
    )

    def __init__(
        self,
        endpoint: str,
        limits: Iterable[Limit],
        concurrency: int,
        shadow: bool,
        memory: Memory,
        before: Rates | None,
    ) -> None:
        """At most `concurrency` requests are in flight (0 = any number). `before` is what the endpoint's
        requests were counted by until now."""
        self._endpoint = endpoint
        self._limits = _one_each(limits)
        self._memory = memory
        self._shadow = shadow
        self._named = {(limit.key, limit.principal) for limit in self._limits if limit.principal}
        self._gauge = (
            Gauge(memory, memory.digest(endpoint, CONCURRENCY), concurrency) if concurrency else None
        )
        self._places: dict[int, _Place] = {}
        of_all = all(limit.key == "endpoint" for limit in self._limits)
        self._everybody = self._place(None, self._limits) if of_all else None
        self._debts: list[_Debt] = before._debts if before is not None else []
        self.counts_tokens: bool = any(limit.tokens for limit in self._limits)
        self.refused: dict[str, int] = before.refused if before is not None else {}
        self.shadowed: dict[str, int] = before.shadowed if before is not None else {}

    def admit(self, caller: Caller, tokens: int, now: float) -> Admission | Denied:
        """Whether the request may run, which is then counted. `tokens` are those that it may use."""
        place = self._everybody or self._place_of(caller)
        memory, gauge = self._memory, self._gauge
        call, call_left, token, token_left = None, 1, None, tokens
        entries: tuple[tuple[Window, int], ...] = ()
        try:
            now = memory.enter(now)
        except Uncountable:
            return self._not_admitted(Denied(UNCOUNTABLE, 1, b""))
        try:
            if self._debts:
                self._pay(now)
            if place.calls:
                call, call_left = _tightest(place.calls, now)
            if place.tokens:
                token, token_left = _tightest(place.tokens, now)
            if call_left < 1 or token_left < tokens or (gauge is not None and gauge.full(now)):
                return self._not_admitted(self._denied(place, tokens, now))
            if gauge is not None:
                gauge.enter(now)
            for counted in place.calls:
                counted.window.add(1, now)
            if token is not None:
                entries = tuple([(c.window, c.window.add(tokens, now)) for c in place.tokens])
        finally:
            memory.leave()
        if self._shadow:
            return Admission(b"", self, tokens, entries, gauge)
        fields = call.fields(call_left - 1, _WHOLE_SPAN) if call is not None else b""
        if token is not None:
            fields += token.fields(token_left - tokens, _WHOLE_SPAN)
        return Admission(fields, self, tokens, entries, gauge)

    def settle(self, debt: _Debt, now: float) -> None:
        """A request is over. Where the numbers cannot be had now, that is counted once they can."""
        self._debts.append(debt)
        try:
            now = self._memory.enter(now)
        except Uncountable:
            return
        try:
            self._pay(now)
        finally:
            self._memory.leave()

    def _pay(self, now: float) -> None:
        while self._debts:
            self._debts.pop().pay(now)

    def _not_admitted(self, denied: Denied) -> Admission | Denied:
        counts = self.shadowed if self._shadow else self.refused
        counts[denied.limit] = counts.get(denied.limit, 0) + 1
        return Admission(b"", self, 0, (), None) if self._shadow else denied

    def _denied(self, place: _Place, tokens: int, now: float) -> Denied:
        """Why the request must not run now, by the limit that opens last."""
        limit, opens, never, fields = CONCURRENCY, now, False, b""
        for all_of_unit, amount in ((place.calls, 1), (place.tokens, tokens)):
            for counted in all_of_unit:
                window = counted.window
                if window.left(now) < amount:
                    never = never or amount > window.most
                    if (then := window.opens(amount, now)) > opens:
                        limit, opens = counted.label, then
            if all_of_unit:
                tightest, left = _tightest(all_of_unit, now)
                fields += tightest.fields(left, _duration(tightest.window.over(now) - now))
        return Denied(limit, _wait(now, opens), fields, never)

    def _place_of(self, caller: Caller) -> _Place:
        # By the object, which stays the same for a token: a caller's hash would cost more than all the rest.
        place = self._places.get(id(caller))
        if place is None or place.caller is not caller:
            if len(self._places) >= _KNOWN_CALLERS:
                self._places.clear()
            place = self._places[id(caller)] = self._place(caller, self._of(caller))
        return place

    def _place(self, caller: Caller | None, limits: Iterable[Limit]) -> _Place:
        calls, tokens = [], []
        for limit in limits:
            if limit.calls:
                calls.append(self._counted(limit, caller, "calls", limit.calls))
            if limit.tokens:
                tokens.append(self._counted(limit, caller, "tokens", limit.tokens))
        return _Place(caller, tuple(calls), tuple(tokens))

    def _counted(self, limit: Limit, caller: Caller | None, unit: str, most: int) -> _Counted:
        each = caller is not None and _is_default(limit)
        whose = _told_apart(caller) if caller is not None and each else ()
        digest = self._memory.digest(self._endpoint, unit, limit.key, limit.principal, *whose)
        window = Window(self._memory, digest, most, lasting=not each)
        return _Counted(f"{limit.key} {unit}", "requests" if unit == "calls" else unit, window)

    def _of(self, caller: Caller) -> Iterator[Limit]:
        of_its_own = _names(caller) in self._named
        for limit in self._limits:
            if _is_default(limit):
                if not of_its_own:
                    yield limit
            elif (
                limit.key == "endpoint"
                or _names(caller) == (limit.key, limit.principal)
                or (limit.key == "user_group" and limit.principal in caller.groups)
            ):
                yield limit


def _tightest(all_of_unit: tuple[_Counted, ...], now: float) -> tuple[_Counted, int]:
    """That of which least is left, and how much."""
    tightest = all_of_unit[0]
    least = tightest.window.left(now)
    for counted in all_of_unit[1:]:
        left = counted.window.left(now)
        if left < least:
            tightest, least = counted, left
    return tightest, least


def _one_each(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """The limits, those for the same ones as one: counted by two, a call would count twice."""
    merged: dict[tuple[str, str], Limit] = {}
    for limit in limits:
        whom = limit.key, limit.principal
        known = merged.get(whom, limit)
        calls, tokens = _lower(known.calls, limit.calls), _lower(known.tokens, limit.tokens)
        merged[whom] = Limit(*whom, calls, tokens)
    return tuple(merged.values())


def _lower(one: int, other: int) -> int:
    """The lower of two limits, of which 0 is none."""
    return min(one, other) if one and other else one or other


def _wait(now: float, opens: float) -> int:
    """The whole seconds, at least 1 and at most the span, after which it is no earlier than `opens`."""
    wait = max(ceil(opens - now), 1)
    return min(wait if now + wait >= opens else wait + 1, int(SPAN_S))  # the difference was rounded


def _duration(seconds: float) -> bytes:
    """As `350ms`, `12s` or `1m0s`, not less than it is."""
    if seconds < 1.0:
        return b"%dms" % ceil(seconds * 1000)
    minutes, whole = divmod(ceil(seconds), 60)
    return b"%dm%ds" % (minutes, whole) if minutes else b"%ds" % whole


def _is_default(limit: Limit) -> bool:
    return limit.key == "user" and not limit.principal


def _names(caller: Caller) -> tuple[str, str]:
    """The key and the principal of a limit that is for this very caller."""
    return ("user" if caller.kind is Kind.USER else "service_principal"), caller.name


def _told_apart(caller: Caller) -> tuple[str, str]:
    """Kind and name, or the token where no principals are known."""
    return ("token", caller.token) if caller.token else (caller.kind, caller.name)
