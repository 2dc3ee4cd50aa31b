"""What must not be there any more when all requests are over."""

from __future__ import annotations

import asyncio

from tests.router.rig import Rig, until
from tests.router.upstreams import Upstream


async def nothing_is_left(r: Rig, *upstreams: Upstream, within: float = 5.0) -> None:
    """Wait until nothing runs: no request, no copy, no task but the test's and those of its `upstreams`, and
    no socket but the idle ones of the pools."""
    await until(lambda: r.inflight() == 0 and _copies(r) == 0, within)
    await until(lambda: not r.router.desk.clients, within)
    await until(lambda: sum(up.open for up in upstreams) == _idle(r), within)
    await until(lambda: not _tasks_of_the_router(), within)


def _copies(r: Rig) -> int:
    return sum(e.mirror.inflight for e in r.router.desk.table.endpoints.values() if e.mirror is not None)


def _idle(r: Rig) -> int:
    backends = [b for e in r.router.desk.table.endpoints.values() for one in e.entities for b in one.backends]
    return sum(len(origin.idle) for origin in {id(b.origin): b.origin for b in backends}.values())


def _tasks_of_the_router() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if "runtime/router" in task.get_coro().cr_code.co_filename]
