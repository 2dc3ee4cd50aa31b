"""The benchmark sees what it is there to see: a relay that drops, delays, rewrites or fails cannot pass for
a good one. The figures themselves are no business of the tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest

from benchmarks.router.fidelity import Fidelity, fidelity
from benchmarks.router.figures import FAR, NEAR, Figures
from benchmarks.router.lineup import Bench, Target, bench
from benchmarks.router.measure import Effort, Measurements
from benchmarks.router.peer import Launch, Place
from tests.benchmarks import bad_relay

FAULTS = ("none", "drop", "late", "rewrite", "error")
STREAMS = 10

slow = pytest.mark.slow
buildable = pytest.mark.skipif(
    shutil.which("gcc") is None or os.cpu_count() == 1,
    reason="the client is written in C; the target and the load have a core each",
)


class Bad:
    """A target of the benchmark with a fault."""

    about = "negative control"

    def __init__(self, fault: str) -> None:
        self.name = fault

    def program(self, installed: Path) -> Path | None:
        return None if self.name == "absent" else Path(sys.executable)

    def launch(self, place: Place) -> Launch:
        program = str(Path(bad_relay.__file__))
        return Launch((sys.executable, program, self.name, str(place.port), str(place.engines[0])))


@pytest.fixture(scope="module")
def on() -> Iterator[Bench]:
    cores = os.sched_getaffinity(0)
    with bench([Bad(fault) for fault in (*FAULTS, "absent")], ready_within_s=3) as running:
        yield running
    assert os.sched_getaffinity(0) == cores


def target(on: Bench, fault: str) -> Target:
    return next(target for target in on.targets if target.name == fault)


@slow
@buildable
def test_a_peer_that_is_missing_or_fails_is_left_out_and_named(on: Bench) -> None:
    assert [target.name for target in on.targets] == ["none", "drop", "late", "rewrite"]
    assert on.absent["absent"] == "not installed"
    assert "500" in on.absent["error"]


@slow
@buildable
@pytest.mark.parametrize(("fault", "share"), [("none", 0.0), ("drop", 1 / bad_relay.EVERY)])
def test_a_chunk_that_is_missing_is_counted(on: Bench, fault: str, share: float) -> None:
    relay = target(on, fault)
    measured = on.client.streams(relay.port, relay.request(512, stream=True), 2, relay.process, STREAMS)
    assert measured.ended == measured.failed == 0
    sent = measured.chunks + measured.lost
    assert sent == pytest.approx(STREAMS * 50 * 2, rel=0.1)
    assert measured.lost == pytest.approx(sent * share, rel=0.2)


@slow
@buildable
def test_a_delay_is_measured(on: Bench) -> None:
    prompt, late = target(on, "none"), target(on, "late")
    delays = [
        on.client.streams(relay.port, relay.request(512, stream=True), 1, relay.process, STREAMS).p50_us
        for relay in (prompt, late)
    ]
    added_us = delays[1] - delays[0]
    assert bad_relay.LATE_S * 0.9 < added_us / 1e6 < bad_relay.LATE_S + 0.05


@slow
@buildable
def test_processor_time_is_that_of_the_target(on: Bench) -> None:
    relay = target(on, "none")
    before = relay.process.cpu_s()
    measured = on.client.requests(relay.port, relay.request(1024), 1, relay.process)
    assert measured.count > 0
    assert measured.cpu_s == pytest.approx(relay.process.cpu_s() - before, rel=0.2)


@slow
@buildable
def test_an_open_loop_keeps_its_pace_and_charges_the_wait(on: Bench) -> None:
    late = target(on, "late")
    request = late.request(256)
    # One connection answers some 30 requests a second: of 100 a second most wait, ever longer.
    measured = on.client.requests(late.port, request, 2, late.process, connections=1, rate=100)
    assert measured.per_second < 40
    assert measured.max_us > 0.5e6
    paced = on.client.requests(late.port, request, 2, late.process, connections=32, rate=100)
    assert paced.per_second == pytest.approx(100, rel=0.1)


@slow
@buildable
def test_bodies_are_compared_byte_for_byte(on: Bench) -> None:
    assert fidelity(on, target(on, "none")) == Fidelity("same", "same", "same")
    assert fidelity(on, target(on, "rewrite")).request == f"written anew, adds `{bad_relay.EXTRA}`"
    assert fidelity(on, target(on, "drop")).request == "same"


@slow
@buildable
def test_no_figure_comes_of_a_relay_that_loses_chunks(on: Bench) -> None:
    only = replace(on, targets=(target(on, "drop"),))
    measurements = Measurements(only, Effort(1, 0.5, careful=False), lambda text: None)
    measurements.rounds(("small", "chunk"))
    measurements.ladder()
    assert measurements.figures.median("drop", "streams") == 0
    assert measurements.figures.median("drop", "lost") > 0


def test_ratios_are_of_the_same_round_and_failures_count_for_nothing() -> None:
    figures = Figures()
    values = ((10.0, 20.0, NEAR), (float("nan"), 1.0, NEAR), (100.0, 200.0, NEAR), (30.0, 50.0, FAR))
    for i, (ours, theirs, distance) in enumerate(values):
        figures.now = (i, distance)
        figures.add("ours", "cost", ours)
        figures.add("theirs", "cost", theirs)
    figures.now = (len(values), FAR)  # the other's value of this round came before the cores were moved
    figures.add("ours", "cost", 1000.0)
    assert figures.ratio("ours", "theirs", "cost") == 0.5
    assert figures.ratio("ours", "theirs", "cost", NEAR) == 0.5
    assert figures.ratio("ours", "theirs", "cost", FAR) == 0.6
    assert figures.median("ours", "cost", NEAR) == 55
    assert isnan(figures.ratio("ours", "absent", "cost"))
    assert isnan(figures.median("absent", "cost"))
