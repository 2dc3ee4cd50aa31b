"""Blocking calls and streams in threads, as awaitables that can be cancelled.

The threads are daemons: what blocks in one of them (a host that hangs) never keeps a command from ending.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Calls:
    """Calls to one host. While one of them hangs beyond its limit there are no new ones: each would leave one
    more thread behind."""

    def __init__(self) -> None:
        self._threads: dict[Thread, float] = {}

    async def call(self, work: Callable[[], T], limit_s: float) -> T:
        """What `work` returns or raises. Raises TimeoutError after `limit_s`, the thread is then left alone;
        and at once where an earlier call hangs."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(how: Callable[[], None]) -> None:
            if not done.done():
                how()

        def run() -> None:
            try:
                how = partial(done.set_result, work())
            except Exception as error:
                how = partial(done.set_exception, error)
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(settle, how)

        self._begin(Thread(target=run, daemon=True), limit_s)
        async with asyncio.timeout(limit_s):
            return await done

    def _begin(self, thread: Thread, limit_s: float) -> None:
        now = time.monotonic()
        self._threads = {one: until for one, until in self._threads.items() if one.is_alive()}
        if any(until <= now for until in self._threads.values()):
            raise TimeoutError("an earlier call still hangs")
        thread.start()
        self._threads[thread] = now + limit_s


@dataclass(frozen=True, slots=True)
class _Failure:
    """Ends a stream."""

    error: Exception


class Stream(Generic[T]):
    """Items of a blocking iterator, in order. `open` is called in the thread; `close` of what it returned is
    called to end it early, from any thread."""

    def __init__(self, open_: Callable[[], Iterator[T]], close: Callable[[Iterator[T]], None]) -> None:
        self._open = open_
        self._close = close

    async def items(self) -> AsyncGenerator[T, None]:
        """All items; ends or raises as the iterator does. To be closed with `aclosing`."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[T | _Failure | None] = asyncio.Queue()
        opened: list[Iterator[T]] = []
        left = False

        def put(item: T | _Failure | None) -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def run() -> None:
            try:
                stream = self._open()
                opened.append(stream)
                if left:
                    self._close(stream)
                    return
                for item in stream:
                    put(item)
            except Exception as error:
                put(_Failure(error))
            put(None)

        Thread(target=run, daemon=True).start()
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            left = True
            for stream in opened:
                self._close(stream)
