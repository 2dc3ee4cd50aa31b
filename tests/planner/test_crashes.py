"""T23 on disk: the real SQLite store and the real table file, killed at every boundary of every scenario."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from servestate.planner.resolve import Resolved
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.table_file import read_version
from tests.planner.rig import Site, killed_at
from tests.planner.scenarios import SCENARIOS


def opened(path: Path) -> SqliteStore:
    return SqliteStore(path, is_gone=lambda owner: False)


class Disk:
    """One site whose store and table file are on disk, opened again after every death."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = Site(opened(folder / "state.db"), path=folder / "table.json")

    def reopen(self) -> None:
        self.site.store.close()
        self.site.store = opened(self.folder / "state.db")

    def check(self) -> None:
        """The file says what the site's double of it says."""
        assert read_version(self.folder / "table.json", self.site.state.lineage) == self.site.table.version

    def close(self) -> None:
        self.site.store.close()


def killed_everywhere(folder: Path, before: Resolved, after: Resolved) -> int:
    """How many boundaries there were; after each death one apply must end where an undisturbed one does."""
    wanted = None
    for nth in count():
        disk = Disk(folder / str(nth))
        try:
            disk.site.converge(before)
            with killed_at(disk.site, nth) as reaper:
                disk.site.apply(disk.site.plan(after))
            disk.reopen()
            disk.site.converge(after)
            disk.check()
            if nth == 0:
                wanted = disk.site.meaning()  # a reaper set to 0 kills nobody
            assert disk.site.meaning() == wanted, reaper.names[-1:]
            if nth and not reaper.dead:
                return nth
        finally:
            disk.close()
    raise AssertionError("unreachable")


@pytest.mark.parametrize("name", ["surge", "recreate"])
def test_killed_at_every_boundary_on_disk(name: str, tmp_path: Path) -> None:
    assert killed_everywhere(tmp_path, *SCENARIOS[name]) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"surge", "recreate"}))
def test_killed_at_every_boundary_on_disk_at_length(name: str, tmp_path: Path) -> None:
    assert killed_everywhere(tmp_path, *SCENARIOS[name]) >= 5


def test_every_state_on_the_way_is_read_back_equal(tmp_path: Path) -> None:
    """What the executor believes and what is on disk are the same after every single commit."""
    for name, (before, after) in SCENARIOS.items():
        disk = Disk(tmp_path / name)
        disk.site.boundary = _compare(disk)
        disk.site.converge(before)
        disk.site.converge(after)
        history = disk.site.store.journal(0)
        assert [entry.serial for entry in history] == list(range(1, disk.site.state.serial + 1))
        assert all(entry.by == "ana (apply)" for entry in history)
        disk.close()


def _compare(disk: Disk):
    def boundary(point: str) -> None:
        if point == "commit:after":
            other = opened(disk.folder / "state.db")
            assert other.read() == disk.site.store.read()
            other.close()

    return boundary
