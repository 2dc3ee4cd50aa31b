"""A span per request, sent by OTLP over HTTP with the OpenTelemetry SDK, an extra that is imported here alone
and where traces are wanted. Batching, sending and repeating are the SDK's own, on its own thread."""

from __future__ import annotations

import logging
import random
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.version import VERSION
from servestate.runtime.router.records.access_log import TRACEPARENT
from servestate.runtime.router.records.counters import error_type
from servestate.runtime.router.records.metrics import OPERATIONS, provider_of
from servestate.runtime.router.records.requester import requester

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import SpanContext

    from servestate.runtime.router.records.record import Record

_PATH = "/v1/traces"
_NANOSECONDS = 1_000_000_000
_QUEUED = 8192
"""Spans that wait to be sent."""
_BATCH = 512
_PARENT_FIELDS = re.compile(rb"^traceparent: [^\r\n]*\r\n", re.MULTILINE)
_TRACE_FIELDS = re.compile(rb"^trace(?:parent|state): [^\r\n]*\r\n", re.MULTILINE)


class Watched:
    """An exporter, and what became of its spans: `taken` counts those it was given, `dropped` those of them
    that could not be delivered; `error` says why the last were not, "" if they were."""

    def __init__(self, url: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import SpanExportResult

        self.taken = self.dropped = 0
        self.error = ""
        self._url = url if urlsplit(url).path.strip("/") else url.rstrip("/") + _PATH
        self._exporter = OTLPSpanExporter(endpoint=self._url)
        self._delivered = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        self.taken += len(spans)
        delivered = False
        try:
            result = self._exporter.export(spans)
            delivered = result is self._delivered
        finally:  # what it raises, the SDK logs and forgets
            if not delivered:
                self.dropped += len(spans)
            self.error = "" if delivered else f"{self._url} did not take the last ones"
        return result

    def shutdown(self) -> None:
        """See `SpanExporter`."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK's

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See `SpanExporter`."""
        return self._exporter.force_flush(timeout_millis)


class Traces:
    """The spans of one worker. They are made whole when their request is over, which costs a third of one
    that is begun and ended."""

    def __init__(self, url: str, delay_s: float = 1.0, queued: int = _QUEUED) -> None:
        """`url` is that of the collector, with the path of its traces or without any; spans are sent so long
        after the first of a batch, and so many may wait for it. Raises InvalidInput SS643 where the SDK is
        not installed."""
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import ReadableSpan
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope

            self.exporter = Watched(url)
        except ImportError as error:
            raise _missing(error) from None
        # Its lines would come out raw on standard error, many for one collector that is not there. `error`
        # says it; who sets up logging hears them as before.
        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
        self._span, self._context, self._flags = ReadableSpan, trace.SpanContext, trace.TraceFlags
        self._sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        self._server = trace.SpanKind.SERVER
        self._well = trace.Status(trace.StatusCode.UNSET)
        self._failed = trace.Status(trace.StatusCode.ERROR)
        self._scope = InstrumentationScope("servestate.router", VERSION)
        self._resource = Resource.create({"service.name": "servestate-router", "service.version": VERSION})
        self._processor = BatchSpanProcessor(
            cast("SpanExporter", self.exporter),
            max_queue_size=queued,
            schedule_delay_millis=delay_s * 1000,
            max_export_batch_size=min(_BATCH, queued),
        )
        self._queued = queued
        self._made = self._refused = 0

    @property
    def dropped(self) -> int:
        """How many spans were lost so far: not delivered, or without room to wait."""
        return self._refused + self.exporter.dropped

    def begun(self, record: Record, fields: bytes) -> bytes:
        """The header lines `fields` of a request as they go upstream: what happens there belongs to the span
        of this request, unless whoever began the trace does not sample it."""
        parent = self._parent(record.traceparent)
        if parent is not None and not parent.trace_flags.sampled:
            return fields
        record.span = trace, span = _ids(parent)
        stale = (
            _TRACE_FIELDS if parent is None else _PARENT_FIELDS
        )  # no state without its trace (section 3.3)
        return b"%btraceparent: 00-%032x-%016x-01\r\n" % (stale.sub(b"", fields), trace, span)

    def ended(self, record: Record) -> None:
        """A request is over. One of a trace that whoever began it does not sample leaves no span."""
        parent = self._parent(record.traceparent)
        if parent is not None and not parent.trace_flags.sampled:
            return
        if self._made - self.exporter.taken >= self._queued:  # the SDK would drop one and tell nobody
            self._refused += 1
            return
        self._made += 1
        trace, span = record.span or _ids(parent)
        began = int(record.wall * _NANOSECONDS)
        self._processor.on_end(
            self._span(
                f"{OPERATIONS.get(record.kind, '_OTHER')} {record.endpoint.name}",
                context=self._context(trace, span, False, self._sampled),
                parent=parent,
                resource=self._resource,
                attributes=_attributes(record),
                kind=self._server,
                status=self._failed if record.cut or record.status >= 500 else self._well,
                start_time=began,
                end_time=began + int(record.total_s * _NANOSECONDS),
                instrumentation_scope=self._scope,
            )
        )

    def close(self, within_s: float) -> None:
        """Send what is left, if that takes no longer: the SDK itself waits longer for a collector that does
        not answer."""
        ending = threading.Thread(target=self._end, name="end-traces", daemon=True)
        ending.start()
        ending.join(within_s)

    def _end(self) -> None:
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK's

    def _parent(self, traceparent: bytes) -> SpanContext | None:
        """What a W3C traceparent names; None if it is none."""
        match = TRACEPARENT.match(traceparent) if traceparent else None
        if match is None:
            return None
        trace, span, flags = (int(part, 16) for part in match.groups())
        context = self._context(trace, span, True, self._flags(flags))
        return context if context.is_valid else None


def _ids(parent: SpanContext | None) -> tuple[int, int]:
    """Of a new span, and of its trace."""
    return random.getrandbits(128) if parent is None else parent.trace_id, random.getrandbits(64)


def _attributes(record: Record) -> dict[str, str | bool | int | float]:
    """By the conventions' names where they have one, else by ours."""
    found: dict[str, str | bool | int | float] = {
        "gen_ai.operation.name": OPERATIONS.get(record.kind, "_OTHER"),
        "gen_ai.provider.name": provider_of(record.entity),
        "gen_ai.request.model": record.entity.model,
        "http.request.method": "POST",
        "http.response.status_code": record.status,
        "servestate.request_id": record.request_id.decode("ascii"),
        "servestate.endpoint": record.endpoint.name,
        "servestate.entity": record.entity.name,
        "servestate.replica": record.replica,
        "servestate.how": record.how,
        "servestate.attempts": len(record.failed) + bool(record.replica),
        "enduser.id": requester(record.caller),
    }
    error = error_type(record)
    if error:
        found["error.type"] = error
    if record.response_model:
        found["gen_ai.response.model"] = record.response_model
    if record.usage is not None:
        found["gen_ai.usage.input_tokens"] = record.usage.prompt
        found["gen_ai.usage.output_tokens"] = record.usage.completion
    if record.first_s >= 0:
        found["gen_ai.server.time_to_first_token"] = record.first_s
    return found


def _missing(error: ImportError) -> InvalidInput:
    return InvalidInput(
        [
            Diagnostic(
                "SS643",
                f"router.traces needs the OpenTelemetry SDK, which cannot be imported: {error}",
                "pip install 'servestate[otlp]', or take servestate.router.traces out",
            )
        ]
    )
