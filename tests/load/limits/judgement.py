"""What a run shows: each bound against what was admitted, each refusal against what came after it."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor

from tests.load.limits.callers import EXACT_UP_TO, GRAIN_S, RESERVED, USED, Bound
from tests.load.limits.crowd import Call
from tests.load.limits.evidence import SPAN_S, Evidence, Life, Spans

SHARE = 0.99
_NEARBY_S = 5.0
_DURATION = re.compile(r"(?:(\d+)m)?(?:(\d+)(m?)s)\Z")


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of a bound. `most` were admitted in less than 60 s with the same counts, `across` them
    where they began anew in between; `shortest_s` is the time in which one more than the bound was, which
    must not be below 60 s. `wanted` are the calls that it allows, as far as they were asked for, `given`
    those that it gave: admitted, or lost with who was killed."""

    bound: Bound
    asked: int
    wanted: float
    given: int
    most: int
    across: int
    shortest_s: float


@dataclass(frozen=True, slots=True)
class Waits:
    """Refusals of those who wait, and what became of their next call, made shortly before that was over or
    right after. `longest_s` is what one waited at most."""

    longest_s: int
    early: int
    early_refused: int
    late: int
    late_admitted: int


def tally(seen: Evidence, bound: Bound) -> Tally:
    """Counted by the executions of upstreams."""
    calls = seen.of(bound)
    ran = [call for call in calls if seen.ran(call)]
    lives = [Spans.of(call for call in ran if life.surely(call)) for life in seen.lives]
    wanted = 0.0
    for life in seen.lives:
        asked = sum(1 for call in calls if life.surely(call))
        wanted += min(asked, bound.calls * max(1.0, life.seconds / SPAN_S))
    return Tally(
        bound,
        len(calls),
        wanted,
        sum(1 for call in calls if seen.may_count(call)),
        max(spans.most() for spans in lives),
        Spans.of(ran).most(),
        min(spans.shortest(bound.calls + 1) for spans in lives),
    )


def waits(seen: Evidence) -> Waits:
    """Of the parties without a pace, each of which is one client."""
    longest = early = early_refused = late = late_admitted = 0
    for party in seen.setup.parties:
        own = [call for call in seen.calls if call.caller == party.name and not party.pace]
        for told, again in pairwise(own):
            same = any(life.surely(told) and life.surely(again) for life in seen.lives)
            if told.status != 429 or again.status not in (200, 429) or not same:
                continue
            if again.began < told.ended + told.retry_after:
                early += 1
                early_refused += again.status == 429
            else:
                longest = max(longest, told.retry_after)
                late += 1
                late_admitted += again.status == 200
    return Waits(longest, early, early_refused, late, late_admitted)


def findings(seen: Evidence) -> list[str]:
    """What must not be; nothing where all is well."""
    return [
        *_executions(seen),
        *(said for bound in seen.setup.bounds for said in _bound(seen, bound)),
        *(said for bound in seen.setup.bounds for said in _promises(seen, bound)),
        *_fields(seen),
        *_failures(seen),
        *_clock(seen),
    ]


def _some(found: Sequence[str]) -> Iterator[str]:
    """One line for all of a kind."""
    if found:
        yield found[0] if len(found) == 1 else f"{found[0]}; and {len(found) - 1} more such"


def _executions(seen: Evidence) -> Iterator[str]:
    times = seen.executed
    calls = seen.calls
    yield from _some([f"call {number} was executed {n} times" for number, n in times.items() if n > 1])
    yield from _some(
        [f"call {c.number} was refused, and ran" for c in calls if c.status == 429 and times[c.number]]
    )
    yield from _some(
        [f"call {c.number} went well, and never ran" for c in calls if c.status == 200 and not seen.ran(c)]
    )
    yield from _some([f"call {c.number} got the answer to another one" for c in calls if not c.right])


def _bound(seen: Evidence, bound: Bound) -> Iterator[str]:
    found = tally(seen, bound)
    if found.most > bound.calls:
        yield (
            f"{bound.name}: {found.most} in less than 60 s, not {bound.calls}; "
            f"{bound.calls + 1} in {found.shortest_s:.3f} s"
        )
    began_anew = [(fault.start, fault.end) for fault in seen.faults if fault.anew]
    spans = Spans.of(call for call in seen.of(bound) if seen.ran(call))
    for index, start in enumerate(spans.starts if began_anew else ()):
        lives = 1 + sum(1 for fault in began_anew if fault[1] > start and fault[0] < start + SPAN_S)
        if lives > 1 and (count := bisect_left(spans.ends, start + SPAN_S) - index) > lives * bound.calls:
            yield f"{bound.name}: {count} in less than 60 s, not {bound.calls} with each of {lives} counts"
            break
    if bound.hard and found.given < (due := floor(SHARE * found.wanted)):
        yield f"{bound.name}: {found.given} of at least {due} calls in the whole run"


def _promises(seen: Evidence, bound: Bound) -> Iterator[str]:
    """Each Retry-After of this bound. A token may be had earlier: what was reserved is settled."""
    calls = sorted(seen.of(bound), key=lambda call: call.began)
    times = [call.began for call in calls]
    possible = Spans.of(call for call in calls if seen.may_count(call))
    early, late = [], []
    for life in seen.lives:
        ran = Spans.of(call for call in calls if seen.ran(call) and life.surely(call))
        for call in calls:
            if call.limit != bound.label or not life.surely(call):
                continue
            opens = call.began + call.retry_after - 1
            if not bound.tokens and any(end < opens for _, end in ran.within(call.ended, opens)):
                early.append(
                    f"{bound.name}: told to wait {call.retry_after} s, and one came in a second before"
                )
            then = bisect_left(times, call.ended + call.retry_after)
            again = calls[then] if then < len(calls) else call
            if (
                again is not call
                and again.limit == bound.label
                and not possible.perhaps(call.began, again.ended)
            ):
                late.append(f"{bound.name}: told to wait {call.retry_after} s, and refused after that")
    yield from _some(early)
    yield from _some(late)


def _fields(seen: Evidence) -> Iterator[str]:
    """The six header lines of every answer, and Retry-After of a refusal."""
    labels = {p.name: {bound.label for bound in seen.setup.of(p.name)} for p in seen.setup.parties}
    wrong: list[str] = []
    for life in seen.lives:
        counts = {bound: _Counts(seen, bound, life) for bound in seen.setup.bounds}
        bounds = {p.name: [counts[b] for b in seen.setup.of(p.name)] for p in seen.setup.parties}
        for call in seen.calls:
            if call.status == 200 and life.surely(call):
                wrong += _of_admitted(call, bounds[call.caller])
    for call in seen.calls:
        if call.status == 429:
            wrong += _of_refused(call, labels[call.caller])
    yield from _some(wrong)


class _Counts:
    """What a bound has counted at some time of a life, at least and at most."""

    def __init__(self, seen: Evidence, bound: Bound, life: Life) -> None:
        calls = seen.of(bound)
        self.bound = bound
        self._sure = Spans.of(call for call in calls if seen.ran(call) and life.surely(call))
        self._possible = Spans.of(call for call in calls if seen.may_count(call) and life.perhaps(call))
        self._late_s = GRAIN_S if bound.most > EXACT_UP_TO else 0.0

    def left(self, call: Call) -> tuple[int, int]:
        """How much is left once the call is admitted, at least and at most."""
        before = self._sure.surely(call.ended - SPAN_S, call.began)
        possible = self._possible.perhaps(call.began - SPAN_S - self._late_s, call.ended)
        of_one, of_all = (USED, RESERVED) if self.bound.tokens else (1, 1)
        return self.bound.most - possible * of_all, self.bound.most - before * of_one - of_all


def _of_admitted(call: Call, all_counts: Sequence[_Counts]) -> Iterator[str]:
    for tokens, (limit, remaining, reset) in enumerate((call.fields[:3], call.fields[3:])):
        counts = [one for one in all_counts if one.bound.tokens == bool(tokens)]
        if not counts and not limit:
            continue
        if limit not in {str(one.bound.most) for one in counts} or reset != "1m0s":
            yield f"call {call.number} of {call.caller}, admitted, says {call.fields}"
            continue
        left = [one.left(call) for one in counts]
        least, most = min(low for low, _ in left), min(high for _, high in left)
        if not max(least, 0) <= int(remaining) <= most:
            yield (
                f"call {call.number} of {call.caller} says that {remaining} are left, "
                f"and {max(least, 0)} to {most} are"
            )


def _of_refused(call: Call, labels: Iterable[str]) -> Iterator[str]:
    given = call.fields[:3], call.fields[3:]
    wanted = [any(label.endswith(unit) for label in labels) for unit in (" calls", " tokens")]
    said = [
        all(of_unit) if is_wanted else not any(of_unit)
        for of_unit, is_wanted in zip(given, wanted, strict=True)
    ]
    if call.limit not in labels or not all(said) or not 1 <= call.retry_after <= SPAN_S:
        yield f"call {call.number} of {call.caller}: {call.limit!r}, {call.retry_after} s, {call.fields}"
        return
    tokens = call.limit.endswith(" tokens")
    _, remaining, reset = given[tokens]
    over_s = _seconds(reset)
    enough = int(remaining) >= (RESERVED if tokens else 1)
    # One more is told where the difference of two times was rounded.
    if enough or not 0 <= over_s <= SPAN_S or call.retry_after > max(ceil(over_s), 1) + 1:
        yield f"call {call.number} of {call.caller}, to wait {call.retry_after} s, says {call.fields}"


def _seconds(duration: str) -> float:
    """Of `350ms`, `12s` or `1m0s`; below 0 for anything else."""
    found = _DURATION.match(duration)
    if found is None:
        return -1.0
    minutes, number, thousandths = found.groups()
    return int(minutes or 0) * 60 + int(number) / (1000 if thousandths else 1)


def _failures(seen: Evidence) -> Iterator[str]:
    """What neither went well nor was refused, and no fault explains."""
    costly = [(f.start, f.end + _NEARBY_S) for f in seen.faults if f.costly]
    yield from _some(
        [
            f"call {call.number} of {call.caller} ended with {call.status or 'no answer'}"
            for call in seen.calls
            if call.status not in (200, 429)
            and not any(call.began <= end and call.ended >= start for start, end in costly)
        ]
    )


def _clock(seen: Evidence) -> Iterator[str]:
    if seen.stepped is not None and not all(seen.stepped):
        yield f"the router's clock was not stepped: {seen.stepped[0]} lines ahead, {seen.stepped[1]} behind"
