"""SIGINT and SIGTERM while something runs that ends in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def handled(handler: Callable[[int], None]) -> Iterator[None]:
    """Give both signals to the handler, on the running loop, for as long as the body runs."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, handler, int(number))
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
