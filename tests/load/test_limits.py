"""Limits in real time: what the judgement notices, and a short run of what `benchmarks.limits` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import limits
from tests.load.limits.callers import Bound, Party, Setup, setup
from tests.load.limits.crowd import Call
from tests.load.limits.evidence import Evidence, Fault, Spans
from tests.load.limits.judgement import findings, tally, waits
from tests.load.limits.run import run

MOST = 10
BOB = Setup((Party("bob", 1, gap_s=1.0),), {}, (Bound("user calls", "bob", frozenset(["bob"]), MOST),))
PAUSE_S = 0.002


def admitted(number: int, at: float, left: int = 0) -> Call:
    fields = (str(MOST), str(left), "1m0s", "", "", "")
    return Call(number, "bob", at, at + PAUSE_S, 200, fields=fields)


def refused(number: int, at: float, wait_s: int, reset: str = "1m0s") -> Call:
    fields = (str(MOST), "0", reset, "", "", "")
    return Call(number, "bob", at, at + PAUSE_S, 429, wait_s, "user calls", fields)


def first_minute() -> list[Call]:
    """One call every six seconds, which uses all of the limit up."""
    return [admitted(n, 6.0 * n, MOST - 1 - n) for n in range(MOST)]


def seen(calls: Sequence[Call], faults: Sequence[Fault] = (), until: float = 61.0) -> Evidence:
    """Each call that went well was executed once."""
    executed = Counter(call.number for call in calls if call.status == 200)
    return Evidence(BOB, 4, 0.0, until, calls, executed, faults)


def test_spans_say_what_is_certain_and_what_is_possible() -> None:
    spans = Spans([(0.0, 1.0), (10.0, 11.0), (60.5, 61.5)])
    assert spans.most() == 2
    assert spans.shortest(2) == 11.0
    assert spans.shortest(4) == float("inf")
    assert (spans.surely(0.5, 11.0), spans.perhaps(0.5, 10.5)) == (1, 2)
    assert list(spans.within(0.0, 60.0)) == [(10.0, 11.0)]


def test_a_limit_that_is_used_up_and_no_more_is_fine() -> None:
    calls = [*first_minute(), refused(10, 55.0, 5), admitted(11, 60.003)]
    assert findings(seen(calls)) == []
    assert tally(seen(calls), BOB.bounds[0]).shortest_s == pytest.approx(60.005)


def test_one_call_too_many_is_found() -> None:
    calls = [*first_minute(), admitted(10, 59.9)]
    assert any(
        one.startswith("user calls, bob: 11 in less than 60 s, not 10") for one in findings(seen(calls))
    )


def test_one_call_too_many_with_counts_begun_anew_is_found() -> None:
    anew = [Fault("router replaced", 57.0, 58.0, anew=True)]
    calls = [*first_minute(), *(admitted(10 + n, 58.1 + n / 100, MOST - 1 - n) for n in range(MOST))]
    assert findings(seen(calls, anew)) == []
    more = [*calls, admitted(20, 59.0)]
    assert any("11 in less than 60 s, not 10" in one for one in findings(seen(more, anew)))
    more = [*calls, admitted(20, 57.5)]
    assert any(
        "21 in less than 60 s, not 10 with each of 2 counts" in one for one in findings(seen(more, anew))
    )


def test_too_few_are_found() -> None:
    calls = [*first_minute()[:8], refused(10, 55.0, 5), refused(11, 55.5, 5)]
    assert "user calls, bob: 8 of at least 9 calls in the whole run" in findings(seen(calls, until=60.0))
    killed = Fault("worker killed", 50.0, 50.0, costly=True)
    lost = Call(12, "bob", 50.0, 50.1)
    assert not any("of at least" in one for one in findings(seen([*calls, lost], [killed], 60.0)))


def test_a_promise_that_is_not_kept_is_found() -> None:
    early = [*first_minute(), refused(10, 57.0, 6), admitted(11, 60.1)]
    assert "user calls, bob: told to wait 6 s, and one came in a second before" in findings(seen(early))
    late = [*first_minute(), refused(10, 57.0, 2), refused(11, 59.1, 1)]
    assert "user calls, bob: told to wait 2 s, and refused after that" in findings(seen(late))
    taken = [*first_minute(), refused(10, 57.0, 4), admitted(11, 60.01), refused(12, 61.1, 5)]
    assert findings(seen(taken)) == []


def test_who_waits_is_counted() -> None:
    calls = [*first_minute(), refused(10, 57.0, 4), refused(11, 59.1, 1), admitted(12, 60.2)]
    found = waits(seen(calls))
    assert (found.early, found.early_refused, found.late, found.late_admitted) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (admitted(10, 60.1, 3), "call 10 of bob says that 3 are left, and 0 to 0 are"),
        (refused(10, 57.0, 0), "call 10 of bob: 'user calls', 0 s"),
        (replace(refused(10, 57.0, 3), limit="concurrency"), "call 10 of bob: 'concurrency', 3 s"),
        (refused(10, 57.0, 3, "350ms"), "call 10 of bob, to wait 3 s, says"),
        (replace(refused(10, 57.0, 3), fields=(str(MOST), "", "1m0s", "", "", "")), "call 10 of bob: 'user"),
        (replace(admitted(10, 60.1), right=False), "call 10 got the answer to another one"),
        (Call(10, "bob", 57.0, 58.0, 502), "call 10 of bob ended with 502"),
    ],
)
def test_what_an_answer_says_is_checked(call: Call, expected: str) -> None:
    assert any(expected in one for one in findings(seen([*first_minute(), call])))


def test_what_upstreams_did_is_checked() -> None:
    well = [*first_minute(), refused(10, 57.0, 4)]
    for executed, expected in (
        ({10: 1}, "call 10 was refused, and ran"),
        ({3: 1}, "call 3 was executed 2 times"),
        ({3: -1}, "call 3 went well, and never ran"),
    ):
        evidence = seen(well)
        evidence.executed.update(executed)
        assert expected in findings(replace(evidence, executed=+evidence.executed))


def test_a_clock_that_was_not_stepped_is_found() -> None:
    assert any("was not stepped" in one for one in findings(replace(seen(first_minute()), stepped=(3, 0))))


def test_a_run_becomes_a_table() -> None:
    calls = [*first_minute(), refused(10, 55.0, 5), admitted(11, 60.003)]
    text = "\n".join(limits.report(replace(seen(calls), stepped=(1, 2))))
    assert "| user calls, bob | 10 | 12 | 10 | 11 | 108.20% | 10 | 60.005 | - |" in text


@pytest.mark.slow
def test_ten_seconds_with_two_workers(tmp_path: Path) -> None:
    found = run(tmp_path / "site", 2, 10.0, setup(1 / 6))
    assert findings(found) == []
    assert {"worker killed", "router replaced"} <= {fault.kind for fault in found.faults}


@pytest.mark.slow
def test_workers_that_count_for_themselves_are_found(tmp_path: Path) -> None:
    found = run(tmp_path / "site", 2, 10.0, setup(1 / 6), control="apart")
    too_many = [one for one in findings(found) if " in less than 60 s, not " in one]
    assert any(one.startswith("user calls, mallory: ") for one in too_many)
    assert any(one.startswith("endpoint calls, shared: ") for one in too_many)
