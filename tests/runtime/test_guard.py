"""What the guard of the controller decides, and how it starts one that does not live."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.site import Site
from servestate.runtime import guard as guarding
from servestate.runtime.guard import CONTROLLER, HUNG_AFTER_S, Guard
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.supervision import supervision_path
from servestate.runtime.workspace import Workspace, is_gone


class Configured:
    """The site as it is configured; None where that has errors."""

    def __init__(self) -> None:
        self.site: Site | None = Site()

    def __call__(self) -> Site:
        if self.site is None:
            raise InvalidInput([Diagnostic("SS100", "not YAML", "correct it")])
        return self.site


@pytest.fixture
def configured() -> Configured:
    return Configured()


@pytest.fixture
def guard(tmp_path: Path, configured: Configured) -> Guard:
    store = SqliteStore(tmp_path / "state.db", is_gone)
    (tmp_path / "table.json").write_text("{}")
    return Guard(CONTROLLER, Workspace(tmp_path, tmp_path, Site(), store), lambda line: None, configured)


def publish(folder: Path) -> None:
    """As an apply or a repair writes the routing table: another file under the same name."""
    (folder / "draft").write_text("{}")
    (folder / "draft").replace(folder / "table.json")


def another(**block: object) -> Site:
    return Site.model_validate(
        {"providers": {"docker": {"hosts": {"far": {"url": "ssh://me@far"}}}}, **block}
    )


def test_another_site_counts_once_it_is_applied(tmp_path: Path, guard: Guard, configured: Configured) -> None:
    configured.site = another()
    assert not guard._has_another_site()  # somebody is editing
    publish(tmp_path)
    assert guard._has_another_site()
    assert guard._site == another()
    publish(tmp_path)  # a repair
    assert not guard._has_another_site()


def test_the_same_site_changes_nothing(tmp_path: Path, guard: Guard) -> None:
    publish(tmp_path)
    assert not guard._has_another_site()


@pytest.mark.parametrize("site", [None, another(state="sqlite:///elsewhere/state.db")])
def test_what_cannot_be_followed_is_left(
    tmp_path: Path, guard: Guard, configured: Configured, site: Site | None
) -> None:
    configured.site = site
    publish(tmp_path)
    assert not guard._has_another_site()
    assert guard._site == Site()


def test_a_table_that_is_removed_is_no_obstacle(tmp_path: Path, guard: Guard, configured: Configured) -> None:
    (tmp_path / "table.json").unlink()
    assert not guard._has_another_site()
    configured.site = another()
    publish(tmp_path)
    assert guard._has_another_site()


def test_a_controller_that_ends_before_it_reads_is_waited_for(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"m{n}": {"versions": {"1": {"engine": "command", "argv": ["x" * 1000]}}} for n in range(200)}
    guard._site = Site.model_validate({"models": many})  # more than a pipe holds
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert guard._one_life() == "ended with code 1"


# Signs of life. The child is a real process that gives none; the clock is the test's.

KILLED = f"gave no sign of life for {HUNG_AFTER_S:.0f} s and was killed"


class Watched:
    """A guard whose looks at its child are counted, and take so many seconds each; `then` is called at each.
    After the last one it is told to stop."""

    def __init__(self, folder: Path, looks: Iterator[float], then: Callable[[int], None]) -> None:
        store = SqliteStore(folder / "state.db", is_gone)
        self.workspace = Workspace(folder, folder, Site(), store)
        self.sign = supervision_path(self.workspace)
        self.looks = 0
        self._now = 0.0
        self._steps = looks
        self._then = then
        self.guard = Guard(CONTROLLER, self.workspace, lambda line: None, Configured(), clock=self._clock)

    def _clock(self) -> float:
        step = next(self._steps, None)
        if step is None:
            self.guard._ending.set()
        self._now += step or 0.0
        self.looks += 1
        self._then(self.looks)
        return self._now


@pytest.fixture
def silent_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "child"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(guarding, "_POLL_S", 0.001)


def nothing(look: int) -> None:
    """Happens."""


@pytest.mark.usefixtures("silent_child")
@pytest.mark.parametrize("ahead_s", [0.0, 1e6])
def test_one_that_gives_no_sign_is_killed(tmp_path: Path, ahead_s: float) -> None:
    watched = Watched(tmp_path, repeat(5.0, 1000), nothing)
    watched.sign.touch()
    os.utime(watched.sign, (time.time(), time.time() + ahead_s))  # somebody has set the clock back since
    assert watched.guard._one_life() == KILLED
    assert 60 <= watched.looks <= 62


@pytest.mark.usefixtures("silent_child")
@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_kills_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    real = time.time

    def set_clock(look: int) -> None:
        if look == 5:
            monkeypatch.setattr(time, "time", lambda: real() + step_s)

    watched = Watched(tmp_path, repeat(0.5, 20), set_clock)
    watched.sign.touch()
    assert watched.guard._one_life() == "was ended by signal 15"
    assert watched.looks > 20


@pytest.mark.usefixtures("silent_child")
def test_one_that_gives_signs_lives(tmp_path: Path) -> None:
    def give_sign(look: int) -> None:
        if look % 10 == 0:
            draft = tmp_path / "draft"
            draft.write_text("{}")
            draft.replace(watched.sign)

    watched = Watched(tmp_path, repeat(5.0, 200), give_sign)
    assert watched.guard._one_life() == "was ended by signal 15"
    assert watched.looks > 200


@pytest.mark.usefixtures("silent_child")
def test_a_guard_that_was_paused_gives_its_child_time_anew(tmp_path: Path) -> None:
    steps = chain(repeat(5.0, 40), [HUNG_AFTER_S * 2], repeat(5.0, 40))
    watched = Watched(tmp_path, steps, nothing)
    assert watched.guard._one_life() == "was ended by signal 15"
