"""The access log: one JSON object per line and request, refused ones too. No word of a prompt or an answer is
in it, and nothing that lets anybody in."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING

import orjson

from servestate.runtime.router.records.keeping import AccessLogConfig
from servestate.runtime.router.records.requester import requester
from servestate.runtime.router.records.rotation import RotatingFile, Rotation, of_worker
from servestate.runtime.router.records.writer import Lines, Writer

if TYPE_CHECKING:
    from servestate.runtime.router.records.record import Record

_QUEUE_BYTES = 8 << 20
_REASON_CHARACTERS = 200
TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z")
"""Its trace, span and flags (W3C Trace Context, section 3.2)."""
_MILLISECONDS = tuple(f".{number:03d}Z" for number in range(1000))  # half the price of formatting one


class AccessLog:
    """The log of one worker, in a file of its own."""

    def __init__(self, config: AccessLogConfig, worker: int = 0) -> None:
        path = of_worker(config.path, worker)
        file = RotatingFile(path, Rotation(config.max_bytes, config.keep))
        self.writer: Writer[bytes] = Writer("access_log", Lines(file), _QUEUE_BYTES)
        self._put = self.writer.put

    def ended(self, record: Record) -> None:
        """A request is over. Times are milliseconds, `ttft_ms` -1 where no content came; `failed` lists the
        entity and the reason of each attempt before the last."""
        usage, failed = record.usage, record.failed
        line = orjson.dumps(
            {
                "time": rfc3339(record.wall),
                "request_id": record.request_id.decode("ascii"),
                "endpoint": record.endpoint.name,
                "entity": record.entity.route.name,
                "replica": record.replica,
                "how": record.how,
                "caller": requester(record.caller),
                "status": record.status,
                "code": record.code,
                "cut": record.cut[:_REASON_CHARACTERS],
                "gone": record.gone,
                "attempts": len(failed) + bool(record.replica),
                "failed": [[entity, why[:_REASON_CHARACTERS]] for entity, why in failed]
                if failed
                else failed,
                "streaming": record.streaming,
                "ttft_ms": _ms(record.first_s) if record.first_s >= 0 else -1,
                "total_ms": _ms(record.total_s),
                "queue_ms": _ms(record.queue_s),
                "own_ms": _ms(record.own_s),
                "bytes_in": record.sent,
                "bytes_out": record.received,
                "input_tokens": usage.prompt if usage is not None else None,
                "output_tokens": usage.completion if usage is not None else None,
                "estimated": usage.estimated if usage is not None else None,
                "trace_id": trace_id(record.traceparent) if record.traceparent else "",
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        self._put(line, len(line))

    def refused(self, endpoint: str, status: int, code: str, request_id: bytes) -> None:
        """A request was answered before an entity was chosen."""
        line = orjson.dumps(
            {
                "time": rfc3339(time.time()),
                "request_id": request_id.decode("ascii"),
                "endpoint": endpoint,
                "how": "refused",
                "status": status,
                "code": code,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        self._put(line, len(line))


def rfc3339(seconds: float) -> str:
    """A time since the epoch in UTC, to the millisecond."""
    whole = int(seconds)
    return _second(whole) + _MILLISECONDS[int((seconds - whole) * 1000)]


def trace_id(traceparent: bytes) -> str:
    """The trace of a W3C traceparent; "" of what is none."""
    match = TRACEPARENT.match(traceparent)
    return match[1].decode("ascii") if match else ""


@lru_cache(maxsize=16)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _ms(seconds: float) -> float:
    return int(seconds * 1e6) / 1000
