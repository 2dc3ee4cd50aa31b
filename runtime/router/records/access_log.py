"""The access log: one JSON object per line and request, refused ones too. No word of a prompt or an answer is
in it, and nothing that lets anybody in."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import orjson

from servestate.runtime.router.records.keeping import AccessLogConfig
from servestate.runtime.router.records.requester import requester
from servestate.runtime.router.records.rotation import RotatingFile, Rotation, of_worker
from servestate.runtime.router.records.writer import Lines, Writer

if TYPE_CHECKING:
    from servestate.planner.access import Caller
    from servestate.runtime.router.records.record import Record

_QUEUE_BYTES: Final = 8 << 20
_REASON_CHARACTERS: Final = 200
TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z")
"""Its trace, span and flags (W3C Trace Context, section 3.2)."""
_MILLISECONDS: Final = tuple(f".{number:03d}Z" for number in range(1000))  # half the price of formatting one
_UNTRACED: Final = b',"trace_id":""}\n'
_KNOWN: Final = 4096
_THOUSANDTHS: Final = tuple(b".%03d" % number for number in range(1000))
_NO_USAGE: Final = b',"input_tokens":null,"output_tokens":null,"estimated":null'


class AccessLog:
    """The log of one worker, in a file of its own."""

    def __init__(self, config: AccessLogConfig, worker: int = 0) -> None:
        path = of_worker(config.path, worker)
        file = RotatingFile(path, Rotation(config.max_bytes, config.keep))
        self.writer = Writer("access_log", Lines(file), _QUEUE_BYTES)
        self._put = self.writer.put
        self._known: dict[tuple[str, str, str, str, int, int, bool], tuple[Caller | None, bytes]] = {}
        self._second = -1
        self._second_text = b""

    def ended(self, record: Record) -> None:
        """A request is over. Times are milliseconds, `ttft_ms` -1 where no content came; `failed` lists the
        entity and the reason of each attempt before the last."""
        if record.code or record.cut or record.gone or record.failed:
            line = _line(record)
        else:
            line = self._usual(record)
        self._put(line, len(line))

    def _usual(self, record: Record) -> bytes:
        """What `_line` makes of a request that nothing was wrong with, at a third of the price: all but the
        numbers was the same before."""
        caller = record.caller
        key = (
            record.endpoint.name,
            record.entity.name,
            record.replica,
            record.how,
            id(caller),
            record.status,
            record.streaming,
        )
        known = self._known.get(key)
        if known is None or known[0] is not caller:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            known = self._known[key] = caller, _middle(record)
        second = int(record.wall)
        if second != self._second:
            self._second, self._second_text = second, _second(second).encode("ascii")
        usage = record.usage
        used = _NO_USAGE
        if usage is not None:
            estimated = b"true" if usage.estimated else b"false"
            used = b',"input_tokens":%d,"output_tokens":%d,"estimated":%b' % (
                usage.prompt,
                usage.completion,
                estimated,
            )
        first = int(record.first_s * 1e6)
        total, queue, own = int(record.total_s * 1e6), int(record.queue_s * 1e6), int(record.own_s * 1e6)
        # Three digits out of a table: to format them costs more than all else here.
        return b'{"time":"%b%bZ","request_id":"%b%b%b,"total_ms":%d%b,"queue_ms":%b,"own_ms":%d%b' % (
            self._second_text,
            _THOUSANDTHS[int((record.wall - second) * 1000)],
            record.request_id,
            known[1],
            b"%d%b" % (first // 1000, _THOUSANDTHS[first % 1000]) if first >= 0 else b"-1",
            total // 1000,
            _THOUSANDTHS[total % 1000],
            b"%d%b" % (queue // 1000, _THOUSANDTHS[queue % 1000]) if queue else b"0",
            own // 1000,
            _THOUSANDTHS[own % 1000],
        ) + b',"bytes_in":%d,"bytes_out":%d%b%b' % (
            record.sent,
            record.received,
            used,
            _traced(record.traceparent) if record.traceparent else _UNTRACED,
        )

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


def _line(record: Record) -> bytes:
    usage, failed = record.usage, record.failed
    return orjson.dumps(
        {
            "time": rfc3339(record.wall),
            "request_id": record.request_id.decode("ascii"),
            "endpoint": record.endpoint.name,
            "entity": record.entity.name,
            "replica": record.replica,
            "how": record.how,
            "caller": requester(record.caller),
            "status": record.status,
            "code": record.code,
            "cut": record.cut[:_REASON_CHARACTERS],
            "gone": record.gone,
            "attempts": len(failed) + bool(record.replica),
            "failed": [[entity, why[:_REASON_CHARACTERS]] for entity, why in failed] if failed else failed,
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


def _middle(record: Record) -> bytes:
    """What stands between the id and the first number, of a request that nothing was wrong with."""
    written = orjson.dumps(
        {
            "endpoint": record.endpoint.name,
            "entity": record.entity.name,
            "replica": record.replica,
            "how": record.how,
            "caller": requester(record.caller),
            "status": record.status,
            "code": "",
            "cut": "",
            "gone": False,
            "attempts": int(bool(record.replica)),
            "failed": [],
            "streaming": record.streaming,
        }
    )
    return b'",%b,"ttft_ms":' % written[1:-1]


def _traced(traceparent: bytes) -> bytes:
    return b',"trace_id":"%b"}\n' % trace_id(traceparent).encode("ascii")


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
