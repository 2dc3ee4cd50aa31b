"""Header lines that say what was measured of a request, to whoever sent it."""

from __future__ import annotations

from typing import Final

from servestate.runtime.router.records.record import Record


def measures(record: Record) -> bytes:
    """The lines, each with its end, of a request whose answer begins now."""
    own_us = int(record.own_s * 1_000_000)
    if own_us < len(_AT_ONCE) and not record.failed and not record.queue_s:
        return _AT_ONCE[own_us]
    return _lines(len(record.failed) + 1, int(record.queue_s * 1000), own_us)


def _lines(attempts: int, queue_ms: int, own_us: int) -> bytes:
    return (
        b"x-servestate-attempts: %d\r\nx-servestate-queue-ms: %d\r\nx-servestate-overhead-ms: %d.%03d\r\n"
        % (attempts, queue_ms, own_us // 1000, own_us % 1000)
    )


_AT_ONCE: Final = [_lines(1, 0, own_us) for own_us in range(1000)]
"""Of requests that were answered at once, by the microseconds that were ours."""
