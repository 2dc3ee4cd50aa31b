"""A table that could not be read for a moment, or not be copied, is not a table that was refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from servestate.planner.table import RoutingTable
from servestate.runtime.router.routing import LiveTable
from servestate.runtime.router.table_watch import TableWatch
from servestate.runtime.table_file import write_table


def admit(table: RoutingTable) -> LiveTable:
    return LiveTable(table, {}, b"")


def test_a_moment_without_descriptors_is_gone_without_a_new_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.json"
    write_table(path, RoutingTable(1, "lineage"))
    watch = TableWatch(path, admit)
    write_table(path, RoutingTable(2, "lineage"))

    def no_descriptors(*_: Any, **__: Any) -> str:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as moment:
        moment.setattr(cast(Any, Path), "read_text", no_descriptors)
        assert not watch.poll()
    assert watch.error is not None
    assert watch.poll()
    assert (watch.table.source.version, watch.error) == (2, None)


def test_a_copy_that_cannot_be_kept_is_no_refusal(tmp_path: Path) -> None:
    """An apply waits until a table is in use that is not refused."""
    path = tmp_path / "table.json"
    write_table(path, RoutingTable(1, "lineage"))
    watch = TableWatch(path, admit)
    copy = tmp_path / "table.json.last-good"
    copy.unlink()
    copy.mkdir()
    write_table(path, RoutingTable(2, "lineage"))
    assert watch.poll()
    assert watch.error is None
    assert watch.copy_error is not None
    assert "could not be written" in watch.copy_error
