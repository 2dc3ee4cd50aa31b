"""Spans as a collector receives them."""

from __future__ import annotations

import builtins
import gzip
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.table import Traffic
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.router.records.books import Books
from servestate.runtime.router.records.exposition import expose
from servestate.runtime.router.records.keeping import BooksConfig
from servestate.runtime.router.records.record import Record, Usage
from servestate.runtime.router.records.traces import Traces
from tests.router import rig
from tests.router.kept import keeping
from tests.router.records import live, recorded
from tests.router.rig import ask, request
from tests.router.upstreams import Upstream, answer, entity, says, table

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent; answers `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, bytes]] = []
        self.status = 200
        self.open = threading.Event()
        self.open.set()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        requests = [ExportTraceServiceRequest.FromString(body) for _, body in self.received]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append((self.path, body))
        self.server.open.wait(10)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: it is a test's."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otlp is not installed")
    with Collector() as found:
        yield found
        found.shutdown()


def sent(collector: Collector, *records: Record) -> list[Any]:
    traces = Traces(collector.url)
    for record in records:
        traces.ended(record)
    traces.close(5.0)
    assert traces.exporter.error == ""
    return collector.spans()


def values(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_span_of_a_request_within_its_callers_trace(collector: Collector) -> None:
    record = recorded(
        live(),
        traceparent=PARENT,
        usage=Usage(3, 4),
        first_s=0.1,
        total_s=0.5,
        response_model="gemma",
        failed=(("b", "503"),),
    )
    (span,) = sent(collector, record)
    assert [path for path, _ in collector.received] == ["/v1/traces"]
    assert span.name == "chat chat-ep"
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    assert span.kind == 2, "a server's"
    assert span.end_time_unix_nano - span.start_time_unix_nano == 500_000_000
    assert span.start_time_unix_nano == pytest.approx(1_790_000_000_123_400_000, abs=1000)
    assert values(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "servestate",
        "gen_ai.request.model": "model-a",
        "gen_ai.response.model": "gemma",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.server.time_to_first_token": 0.1,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "servestate.request_id": "0123456789abcdef-1",
        "servestate.endpoint": "chat-ep",
        "servestate.entity": "a",
        "servestate.replica": "chat-ep/a@rev#0",
        "servestate.how": "split",
        "servestate.attempts": 2,
        "enduser.id": "ann@example.com",
    }


def test_traces_of_our_own_and_those_that_are_not_wanted(collector: Collector) -> None:
    table = live()
    spans = sent(
        collector,
        recorded(table),
        recorded(table, traceparent=b"nonsense"),
        recorded(table, traceparent=PARENT[:-2] + b"00"),
        recorded(table, status=503, code="TEMPORARILY_UNAVAILABLE"),
    )
    assert len(spans) == 3, "whoever began the third does not sample it"
    assert len({span.trace_id for span in spans}) == 3
    assert all(span.parent_span_id == b"" for span in spans)
    assert [span.status.code for span in spans] == [0, 0, 2]
    assert values(spans[2])["error.type"] == "TEMPORARILY_UNAVAILABLE"


def test_what_a_collector_refuses_is_counted_and_said(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    collector.status = 400
    traces = Traces(collector.url + "/custom/path", delay_s=0.01)
    traces.ended(recorded(live()))
    traces.close(5.0)
    assert collector.received[0][0] == "/custom/path"
    assert traces.exporter.dropped == 1
    assert traces.exporter.error == f"{collector.url}/custom/path did not take the last ones"


def test_spans_without_room_are_counted_and_none_is_lost_in_silence(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    collector.open.clear()
    traces = Traces(collector.url, delay_s=0.01, queued=10)
    traces.ended(recorded(live()))
    while not collector.received:
        time.sleep(0.002)
    for _ in range(50):
        traces.ended(recorded(live()))
    assert traces.dropped == 40
    collector.open.set()
    traces.close(5.0)
    assert len(collector.spans()) == 11
    assert traces.dropped == 40


def test_spans_that_the_exporter_fails_with_are_counted(
    collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(spans: object) -> None:
        raise RuntimeError("a bug")

    caplog.set_level(logging.CRITICAL)
    traces = Traces(collector.url, delay_s=0.01)
    monkeypatch.setattr(traces.exporter._exporter, "export", fails)
    for _ in range(3):
        traces.ended(recorded(live()))
    traces.close(5.0)
    assert traces.dropped == 3
    assert traces.exporter.error


def test_lost_spans_are_in_the_metrics(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    collector.status = 400
    books = Books(BooksConfig(otlp=collector.url), EnvSecrets({}))
    table = live()
    books.adopt(table)
    books.ended(recorded(table))
    books.close(5.0)
    assert 'servestate_log_dropped_total{log="traces"} 1' in expose(books.snapshot(table, 0)).decode()


TRACEPARENTS = {
    "a sampled one": ("traceparent: " + PARENT.decode() + "\r\ntracestate: a=1\r\n", True),
    "of a later version": ("traceparent: cc" + PARENT.decode()[2:] + "-more\r\n", True),
    "none": ("", False),
    "a broken one": ("traceparent: nonsense\r\ntracestate: a=1\r\n", False),
    "two": (f"traceparent: {PARENT.decode()}\r\n" * 2, False),
}


@pytest.mark.parametrize("named", TRACEPARENTS)
def test_the_span_upstream_is_a_child_of_the_routers(
    named: str, collector: Collector, tmp_path: Path
) -> None:
    fields, continues = TRACEPARENTS[named]

    async def body() -> None:
        async with Upstream() as up:
            async with keeping(table(entity("a", 100, up.url)), tmp_path, otlp=collector.url) as r:
                assert (await ask(r, request(fields=f"Accept: */*\r\n{fields}"))).status == 200
            sent = [value for name, value in up.received[0].fields if name == "traceparent"]
            (span,) = collector.spans()
            assert sent == [f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"]
            assert (span.trace_id.hex() == PARENT.split(b"-")[1].decode()) == continues
            assert span.parent_span_id.hex() == (PARENT.split(b"-")[2].decode() if continues else "")
            states = [value for name, value in up.received[0].fields if name == "tracestate"]
            assert states == (["a=1"] if continues and "tracestate" in fields else [])
            assert ("accept", "*/*") in up.received[0].fields

    rig.run(body())


def test_a_trace_that_is_not_sampled_goes_on_as_it_came(collector: Collector, tmp_path: Path) -> None:
    async def body() -> None:
        parent = PARENT[:-2].decode() + "00"
        async with Upstream() as up:
            async with keeping(table(entity("a", 100, up.url)), tmp_path, otlp=collector.url) as r:
                assert (await ask(r, request(fields=f"traceparent: {parent}\r\n"))).status == 200
            assert dict(up.received[0].fields)["traceparent"] == parent
            assert not collector.spans()

    rig.run(body())


def test_all_attempts_are_of_one_span(collector: Collector, tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream(says(answer(b"{}", "503 Unavailable"))) as a, Upstream() as b:
            routes = table(entity("a", 100, a.url), entity("b", 0, b.url), traffic=Traffic(fallback=True))
            async with keeping(routes, tmp_path, otlp=collector.url) as r:
                assert (await ask(r, request())).status == 200
            (span,) = collector.spans()
            sent = {dict(up.received[0].fields)["traceparent"] for up in (a, b)}
            assert sent == {f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"}

    rig.run(body())


def test_a_collector_that_is_not_there_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otlp is not installed")
    caplog.set_level(logging.CRITICAL)
    traces = Traces("http://127.0.0.1:1", delay_s=0.01)
    began = time.monotonic()
    for _ in range(1000):
        traces.ended(recorded(live()))
    assert time.monotonic() - began < 2.0
    began = time.monotonic()
    traces.close(1.0)
    assert time.monotonic() - began < 1.5


_UNHEARD = """
from servestate.runtime.router.records.traces import Traces
from tests.router.records import live, recorded
traces = Traces("http://127.0.0.1:1", delay_s=0.01)
traces.ended(recorded(live()))
traces.close(1.5)
print(traces.exporter.taken)
"""


@pytest.mark.slow
def test_the_sdk_does_not_write_to_standard_error_itself() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otlp is not installed")
    done = subprocess.run([sys.executable, "-c", _UNHEARD], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_without_the_sdk_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InvalidInput) as caught:
        Traces("http://127.0.0.1:1")
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "SS643"
    assert "servestate[otlp]" in diagnostic.fix
