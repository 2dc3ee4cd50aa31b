"""A program that reads --json learns of everything that a person is told, and sees what is wrong as such."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from servestate.runtime import apply
from servestate.runtime.executor import Executor
from servestate.runtime.store.protocol import Lock, LostLock, Owner
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.workspace import is_gone, owner_of_this_process
from tests.cli.harness import ONE, Result, Site, echo, remote, until

EXTERNAL = {"solo": {"only": remote()}}


def objects(result: Result, type: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in result.out.splitlines()]
    return [one for one in found if one["type"] == type]


def test_a_lock_that_is_held_is_an_object(site: Site) -> None:
    site.configure(EXTERNAL)
    site.apply()
    store = SqliteStore(site.database, is_gone)
    held, _ = store.acquire(owner_of_this_process("apply"), time.time())
    site.configure({"solo": {"only": remote("v2")}})
    refused = site.run("apply", "--json", "--auto-approve")
    assert refused.code == 6
    (found,) = objects(refused, "lock")
    assert (found["@level"], found["lock"]["id"], found["lock"]["verb"]) == ("error", held.id, "apply")
    assert found["lock"]["pid"] == int(held.owner.process.partition(".")[0])
    store.release(held)
    store.close()


def test_a_blocked_plan_is_a_diagnostic(site: Site) -> None:
    site.configure(EXTERNAL, lifecycle={"prevent_destroy": True})
    site.apply()
    refused = site.run("destroy", "--json", "--auto-approve")
    assert refused.code == 3
    (found,) = objects(refused, "diagnostic")
    assert found["diagnostic"]["code"] == "SS304"
    assert "solo: delete is blocked by" in found["diagnostic"]["detail"]


@pytest.mark.parametrize(
    "argv",
    [
        ("plan", "--json", "--var", "novalue"),
        ("plan", "--json", "--bogus"),
        ("apply", "--json"),
        ("destroy", "--json", "--lock-timeout=nan"),
    ],
    ids=" ".join,
)
def test_a_usage_error_is_a_diagnostic(site: Site, argv: tuple[str, ...]) -> None:
    site.configure(EXTERNAL)
    refused = site.run(*argv)
    assert refused.code == 64
    (found,) = objects(refused, "diagnostic")
    assert found["diagnostic"]["code"] == "SS001"
    assert found["diagnostic"]["summary"] in refused.err


def test_a_lost_lock_is_a_diagnostic(site: Site) -> None:
    site.configure(ONE, versions={"1": echo("1", "--gate", "gate")})
    first = site.start("apply", "--json", "--auto-approve")
    until(lambda: len(site.trees()) > 0, "the engine is launched")
    held = SqliteStore(site.database, is_gone).held()
    assert held is not None
    site.run("lock", "break", held.id, "--force").ok()
    (site.folder / "gate").touch()
    out, err = first.communicate(timeout=20)
    assert first.returncode == 4
    (found,) = objects(Result((), 4, out, err), "diagnostic")
    assert found["diagnostic"]["code"] == "SS409"
    assert found["diagnostic"]["summary"].startswith("lost lock")


class Taken:
    """A store whose lock somebody else has."""

    def renew(self, lock: Lock, now: float) -> bool:
        return False


async def _beat(executor: Executor) -> None:
    store: Any = Taken()
    async with apply._heartbeat(
        store, Lock("id", Owner("apply", "ana", "here", "1.1.0"), 0.0, 60.0), executor
    ):
        async with asyncio.timeout(5):
            while executor.outcome.lost is None:
                await asyncio.sleep(0.001)


def test_a_heartbeat_that_lost_the_lock_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "HEARTBEAT_S", 0.001)
    unused: Any = None
    executor = Executor(unused, unused, unused, unused)
    asyncio.run(_beat(executor))
    assert isinstance(executor.outcome.lost, LostLock)
    assert not executor.outcome.interrupted


def test_a_code_has_one_meaning() -> None:
    """A step that failed is not a command that could not go on."""
    texts = [path.read_text() for path in Path(apply.__file__).parent.rglob("*.py")]
    assert sum(text.count("SS411") for text in texts) == 1
