"""What the guard of the controller decides, and how it starts one that does not live."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.site import Site
from servestate.runtime.guard import CONTROLLER, Guard
from servestate.runtime.store.sqlite import SqliteStore
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
