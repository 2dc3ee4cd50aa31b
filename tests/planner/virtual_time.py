"""Time that jumps: an event loop whose clock goes to whatever is due next, and death in the midst of it."""

from __future__ import annotations

import asyncio
import selectors


class Killed(SystemExit):
    """kill -9: asyncio lets a SystemExit through everything at once, and nothing catches it on the way."""


class Stuck(Exception):
    """Everything waits and nothing will ever happen."""


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise Stuck
        if not ready:
            self.now += timeout or 0.0
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing that is due."""

    def __init__(self) -> None:
        self._jumping = _Selector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(coroutine):
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        try:
            return runner.run(coroutine)
        except Killed:
            # Nobody is left to ask how the other tasks of a killed process ended.
            runner.get_loop().set_exception_handler(lambda loop, context: None)
            raise
