"""The command line with one thing changed, for what cannot be done from outside.

    python driver.py CHANGE VERB ...

CHANGE is a function of this module. Most take a defence away: the tests that hold it must then fail.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

from servestate.planner.state import Launched, LaunchIntended
from servestate.planner.steps import Launch
from servestate.providers.protocol import Marks
from servestate.runtime import executor
from servestate.runtime.cli import main
from servestate.runtime.failpoints import reach
from servestate.runtime.store import sqlite


def list_failpoints() -> None:
    """Write every failpoint that is reached to the file FAILPOINTS."""

    def note(point: str) -> None:
        with open(os.environ["FAILPOINTS"], "a") as file:
            file.write(f"{point}\n")

    executor.reach = note


def intent_after_effect() -> None:
    """Launch first, record afterwards (the opposite of D1). The marks are still worn."""

    async def launch(self: executor.Executor, step: Launch) -> None:
        op = self._world.new_id()
        marks = Marks(self.state.lineage, step.address, self.state.serial, op)
        launched = await self._provider(step.spec).launch(step.spec, marks)
        reach("launch.after_effect")
        await self._record(LaunchIntended(step.address, step.spec, op))
        await self._record(Launched(step.address, launched.handle, launched.url))

    executor.Executor._launch = launch  # type: ignore[method-assign]


_FENCE = " WHERE serial = ? AND lineage = ? AND EXISTS (SELECT 1 FROM lock WHERE id = ?)"


def no_fence() -> None:
    """Commit whatever the serial and the lock are now (without D2)."""
    _rewrite({_FENCE: " WHERE 1 OR ? IS ? OR ?"})


def no_fence_and_no_journal_key() -> None:
    """As `no_fence`; a serial that is in the journal already is overwritten instead of refused."""
    _rewrite({_FENCE: " WHERE 1 OR ? IS ? OR ?", "INSERT INTO journal": "INSERT OR REPLACE INTO journal"})


def _rewrite(replacements: dict[str, str]) -> None:
    """Run other SQL than the store means to."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            for old, new in replacements.items():
                sql = sql.replace(old, new)
            return super().execute(sql, *arguments)

    def connect(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        return original(*arguments, factory=Connection, **settings)

    original: Callable[..., sqlite3.Connection] = sqlite3.connect
    sqlite.sqlite3.connect = connect  # type: ignore[assignment]


if __name__ == "__main__":
    change = sys.argv.pop(1)
    globals()[change]()
    sys.exit(main(sys.argv[1:]))
