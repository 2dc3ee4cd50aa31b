"""T2: kill -9 at every named step of an apply; one more apply converges, with nothing orphaned or doubled."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.cli.harness import CLI, DRIVER, ONE, Result, Site, echo
from tests.cli.sweep import (
    KILLED,
    NOTHING,
    OPERATIONS,
    check_converged,
    check_state,
    check_survives,
    failpoints_in_source,
    on_sites,
    prepare,
    reached_by,
)

SAMPLE = 4
"""Kills that the quick run makes; the slow run makes all."""


def kill_at(site: Site, point: str, program: tuple[str, ...] = CLI) -> Result:
    """Apply, and die at that point."""
    arguments = ("apply", "--auto-approve")
    process = site.start(*arguments, program=program, SERVESTATE_FAILPOINT=point)
    out, err = process.communicate(timeout=60)
    assert process.returncode == KILLED, f"not killed: {process.returncode}\n{out}\n{err}"
    return Result(arguments, process.returncode, out, err)


def survive(site: Site, case: tuple[str, str]) -> None:
    operation, point = case
    prepare(site, OPERATIONS[operation])
    check_survives(site, kill_at(site, point), {**NOTHING, **OPERATIONS[operation].after})


def points_of(folder: Path, operations: list[str]) -> list[tuple[str, str]]:
    """What these operations pass, with the operation."""
    found: dict[str, list[str]] = {}

    def look(site: Site, name: str) -> None:
        found[name] = reached_by(site, OPERATIONS[name])
        check_converged(site, {**NOTHING, **OPERATIONS[name].after})

    on_sites(folder, operations, look)
    return [(name, point) for name in operations for point in found[name]]


def test_a_few_points(tmp_path: Path, seeded: random.Random) -> None:
    cases = points_of(tmp_path, ["update a process"])
    on_sites(tmp_path, seeded.sample(cases, SAMPLE), survive)


@pytest.mark.slow
def test_every_point_of_every_operation(tmp_path: Path) -> None:
    cases = points_of(tmp_path, list(OPERATIONS))
    passed = {point.partition("#")[0] for _, point in cases}
    elsewhere = {"ready.after_failure"}  # the next test's
    elsewhere |= {"pull.before_effect", "pull.after_effect"}  # tests/containers/test_plan_docker.py's
    assert failpoints_in_source() - passed == elsewhere
    print(f"{len(cases)} kills")
    on_sites(tmp_path, cases, survive)


@pytest.mark.slow
def test_dying_before_a_failed_engine_is_stopped(site: Site) -> None:
    site.configure(ONE, versions={"1": echo("1", "--deaf", ready_timeout_s=0.3)})
    killed = kill_at(site, "ready.after_failure")
    check_state(site, killed.out)
    assert len(site.alive()) == 1  # recorded as failed, not stopped yet
    assert site.run("apply", "--auto-approve").code == 4
    assert site.alive() == []
    site.configure(ONE)
    site.apply()
    check_converged(site, ONE)


def test_points_are_found_in_the_source() -> None:
    points = failpoints_in_source()
    assert {"launch.after_intent", "publish.after_effect", "rewrite.after_effect"} <= points
    assert not any("{" in point for point in points)


class TestNegativeControl:
    """With the intent committed after the effect (D1 taken away) a kill in between leaves what no state
    knows."""

    def test_the_state_knows_nothing_of_what_runs(self, site: Site) -> None:
        site.configure(ONE)
        kill_at(site, "launch.after_effect", (*DRIVER, "intent_after_effect"))
        with pytest.raises(AssertionError, match="an orphan"):
            check_no_orphan(site)

    def test_with_the_intent_first_it_does(self, site: Site) -> None:
        site.configure(ONE)
        kill_at(site, "launch.after_effect")
        check_no_orphan(site)

    def test_the_marks_still_catch_it(self, site: Site) -> None:
        # Honestly: intents are not the only net. What wears our marks is found and adopted all the same.
        site.configure(ONE)
        kill_at(site, "launch.after_effect", (*DRIVER, "intent_after_effect"))
        site.apply()
        check_converged(site, ONE)


def check_no_orphan(site: Site) -> None:
    """Everything that runs is known to the state."""
    known = set(map(str, site.state().instances))
    assert set(site.alive()) <= known, f"an orphan: {set(site.alive()) - known}"
