"""Applies for clients that are elsewhere. One goes on when its client has gone; its progress can be asked for
while it is one of the last that there were.
"""

from __future__ import annotations

import asyncio
import secrets as random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.runtime.api.call import absent, unavailable
from servestate.runtime.api.hands import Interrupt, Interrupted
from servestate.runtime.causes import EXPECTED
from servestate.runtime.store.protocol import LockHeld, LostLock
from servestate.runtime.wire import INTERRUPTED, Json, error_to_json, locked_to_json

POLL_S = 5.0
"""How long a request waits for news before it is answered with none; a server that is told to stop waits for
such requests."""

KEPT = 50
"""Operations that are remembered."""


class Operation:
    """An apply: what it has told so far (`events`), and how it has ended (`result`), None while it has not.
    Made on the loop of the server; its thread tells."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.interrupt = Interrupt()
        self.events: list[Json] = []
        self.result: Json | None = None
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def tell(self, event: Json) -> None:
        """One more thing has happened."""
        self.events.append(event)
        self._loop.call_soon_threadsafe(self._news.set)

    def end(self, result: Json) -> None:
        """Nothing more will."""
        self.result = result
        self._loop.call_soon_threadsafe(self._news.set)

    async def heard(self, after: int) -> None:
        """Return once there is more than so many events, it has ended, or POLL_S is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                while self.result is None and len(self.events) <= after:
                    self._news.clear()  # what is told from here on sets it after this, on the loop
                    await self._news.wait()


class Operations:
    """The last applies of this process. Each runs in a thread of its own."""

    def __init__(self) -> None:
        self._known: dict[str, Operation] = {}
        self._threads = ThreadPoolExecutor(KEPT, "apply")
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Callable[[Operation], Json]) -> Operation:
        """Have the work done. Raises Refusal where too much is under way."""
        ended = [id for id, operation in self._known.items() if operation.result is not None]
        if len(self._known) >= KEPT:
            if not ended:
                raise unavailable("too many applies wait for the lock", 10)
            del self._known[ended[0]]
        operation = Operation(random.token_hex(8))
        self._known[operation.id] = operation
        task = asyncio.create_task(self._see_to(operation, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return operation

    def get(self, id: str) -> Operation:
        """The operation. Raises Refusal 404."""
        found = self._known.get(id)
        if found is None:
            raise absent(f"no apply {id!r} is known: the server has been started anew, or that is long ago")
        return found

    async def _see_to(self, operation: Operation, work: Callable[[Operation], Json]) -> None:
        """Ends with the work. When the server ends first, what is in flight is finished before it does."""
        run = asyncio.get_running_loop().run_in_executor(self._threads, _ended, operation, work)
        try:
            await asyncio.shield(run)
        except asyncio.CancelledError:
            operation.interrupt.set()
            await run


def _ended(operation: Operation, work: Callable[[Operation], Json]) -> None:
    # What ends without any of these is a mistake of ours: its traceback is in the log, and nobody waits.
    what = "the server has failed; its log says how"
    result = error_to_json(InvalidInput([Diagnostic("SS500", what, "look there")]))
    try:
        result = work(operation)
    except LockHeld as error:
        result = locked_to_json(error.lock)
    except Interrupted:
        result = INTERRUPTED
    except (*EXPECTED, LostLock) as error:
        result = error_to_json(error)
    finally:
        operation.end(result)
