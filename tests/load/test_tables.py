"""The tables of the long runs: what they judge by, and that they can be made of any run."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace

import pytest

from benchmarks import ledger, soak
from benchmarks.descriptors import Descriptors
from benchmarks.soak import Sample, Soak
from tests.load.book import Book
from tests.load.outcome import Outcome
from tests.load.run import Run
from tests.load.test_judgement import ends, evidence

MIB = 2**20
STEADY = Soak(
    600.0,
    Book(bytearray([Outcome.WHOLE]), array("d", [0.0]), array("d", [1.0]), array("H", [200])),
    [Sample(float(second), {7: 40 * MIB}, {7: Descriptors(100, 25, 20)}) for second in range(600)],
    [0.001] * 1000,
    0,
)


def growing(mib_in_ten_minutes: float) -> list[Sample]:
    """A process that grows evenly, after a warm-up in which it grows faster."""
    return [
        Sample(
            float(second),
            {7: int((40 + min(second, 100) / 5 + mib_in_ten_minutes * second / 600) * MIB)},
            {7: Descriptors(100, 25, 20)},
        )
        for second in range(600)
    ]


def moving(source: random.Random) -> list[Sample]:
    """Two processes to which 200 clients are dealt anew every hundred seconds, which takes a second; now and
    then one of them looks at a file."""
    samples = []
    dealt = 0
    for second in range(600):
        if second % 100 == 0:
            dealt = sum(source.random() < 0.5 for _ in range(200))
        there = 0.5 if second % 100 == 99 else 1.0
        found = {
            7: Descriptors(round(dealt * there), source.randrange(24, 30), 20 + (second % 7 == 0)),
            8: Descriptors(round((200 - dealt) * there), source.randrange(24, 30), 20),
        }
        samples.append(Sample(float(second), {7: 40 * MIB, 8: 40 * MIB}, found))
    return samples


def leaking(every: int) -> list[Sample]:
    """A process that forgets one descriptor in so many seconds, while clients leave it for another one."""
    return [
        Sample(
            float(second),
            {7: 40 * MIB, 8: 40 * MIB},
            {
                7: Descriptors(120 - second // 20, 25, 20 + second // every),
                8: Descriptors(80 + second // 20, 25, 20),
            },
        )
        for second in range(600)
    ]


def pooling() -> list[Sample]:
    """A process that uses ever more connections to upstreams."""
    return [
        Sample(float(second), {7: 40 * MIB}, {7: Descriptors(100, 25 + second // 40, 20)})
        for second in range(600)
    ]


def test_a_steady_router_misses_nothing() -> None:
    assert list(soak.missed(STEADY)) == []
    assert list(soak.missed(replace(STEADY, samples=growing(0.9)))) == []
    assert "Bars missed: none." in soak.report(STEADY, "a command")


def test_clients_that_are_dealt_anew_are_no_leak() -> None:
    runs = [replace(STEADY, samples=moving(random.Random(seed))) for seed in range(20)]
    assert [list(soak.missed(run)) for run in runs] == [[]] * len(runs)
    totals = [soak.first_and_last([s.descriptors[7].all for s in run.settled]) for run in runs]
    assert max(last - first for first, last in totals) > 8


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"samples": growing(1.2)}, "process 7 grows by 1.20 MiB in ten minutes"),
        ({"samples": leaking(120)}, "process 7 has +3 descriptors without an open connection"),
        ({"samples": pooling()}, "all processes together have +11 descriptors"),
        ({"lags": [0.001] * 980 + [0.021] * 20}, "the loops lag by 21.0 ms (p99)"),
        ({"left": 1}, "1 connections or requests are left"),
        ({"book": Book(bytearray([Outcome.ERROR]))}, "not all requests went well"),
    ],
)
def test_what_grows_or_lags_is_told(changed: dict[str, object], said: str) -> None:
    found = replace(STEADY, **changed)
    assert any(said in one for one in soak.missed(found)), list(soak.missed(found))
    assert said in soak.report(found, "a command")


def test_a_run_becomes_a_table() -> None:
    good = ledger.report(Run(1000.0, 500.0, 60.0, evidence()), "a command")
    assert "Went well: 100.0000% of what no client left. Found: nothing." in good
    assert "| upstream killed | 1 | 0.0 | 0 | yes |" in good
    bad = ledger.report(Run(1000.0, 500.0, 60.0, evidence(ends(101, Outcome.HUNG))), "a command")
    assert "- 1 requests that ended as HUNG: [101]" in bad
