"""The access log: what a line says, and what none ever says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from servestate.planner.access import Caller, Kind
from servestate.runtime.router.records.access_log import AccessLog, rfc3339, trace_id
from servestate.runtime.router.records.keeping import AccessLogConfig
from servestate.runtime.router.records.record import Record, Usage
from tests.router.records import live, recorded


def logged(path: Path, *records: Record) -> list[dict[str, Any]]:
    log = AccessLog(AccessLogConfig(path))
    for record in records:
        log.ended(record)
    log.writer.close(1.0)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_everything(tmp_path: Path) -> None:
    table = live()
    record = recorded(
        table,
        status=200,
        streaming=True,
        first_s=0.0123456,
        total_s=1.5,
        queue_s=0.002,
        own_s=0.00005,
        usage=Usage(11, 22, estimated=True),
        failed=(("b", "503 " + "x" * 300),),
        traceparent=b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert logged(tmp_path / "access.log", record) == [
        {
            "time": "2026-09-21T14:13:20.123Z",
            "request_id": "0123456789abcdef-1",
            "endpoint": "chat-ep",
            "entity": "a",
            "replica": "chat-ep/a@rev#0",
            "how": "split",
            "caller": "ann@example.com",
            "status": 200,
            "code": "",
            "cut": "",
            "gone": False,
            "attempts": 2,
            "failed": [["b", ("503 " + "x" * 300)[:200]]],
            "streaming": True,
            "ttft_ms": 12.345,
            "total_ms": 1500.0,
            "queue_ms": 2.0,
            "own_ms": 0.05,
            "bytes_in": 200,
            "bytes_out": 400,
            "input_tokens": 11,
            "output_tokens": 22,
            "estimated": True,
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
        }
    ]


def test_no_content_no_credential_and_no_forged_line(tmp_path: Path) -> None:
    table = live()
    record = recorded(
        table,
        request=b'{"messages":"a very private prompt"}',
        answer=b"a very private answer",
        caller=Caller("anonymous", token="d1gest5ecret" * 5),
        client_request_id='x\n{"forged":1}',
        usage_context={"private": "context"},
        cut="broke\n off",
        traceparent=b'00-x"\n',
    )
    found = logged(tmp_path / "access.log", record)
    assert len(found) == 1
    assert found[0]["caller"] == "token:d1gest5ecret"
    assert found[0]["trace_id"] == ""
    text = (tmp_path / "access.log").read_text()
    assert "private" not in text
    assert "forged" not in text
    assert (tmp_path / "access.log").stat().st_mode & 0o777 == 0o600


def test_refused_requests_and_those_that_no_token_was_asked_for(tmp_path: Path) -> None:
    log = AccessLog(AccessLogConfig(tmp_path / "access.log"), worker=3)
    log.refused("chat-ep", 429, "REQUEST_LIMIT_EXCEEDED", b"0123-2")
    log.refused("", 401, "UNAUTHENTICATED", b"0123-3")
    log.ended(recorded(live(), caller=None, gone=True, status=0, replica=""))
    log.writer.close(1.0)
    first, second, third = map(json.loads, (tmp_path / "access-w3.log").read_text().splitlines())
    assert (first["endpoint"], first["status"], first["how"]) == ("chat-ep", 429, "refused")
    assert (first["code"], first["request_id"]) == ("REQUEST_LIMIT_EXCEEDED", "0123-2")
    assert (second["endpoint"], second["status"]) == ("", 401)
    assert (third["caller"], third["gone"], third["attempts"], third["ttft_ms"]) == ("", True, 0, -1)


def test_service_principals_go_by_their_name(tmp_path: Path) -> None:
    caller = Caller("nightly-job", Kind.SERVICE_PRINCIPAL)
    assert logged(tmp_path / "a.log", recorded(live(), caller=caller))[0]["caller"] == "nightly-job"


def test_times_and_traces() -> None:
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_790_000_000.9996) == "2026-09-21T14:13:20.999Z", "never the next second's"
    assert trace_id(b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-00") == "a" * 32
    for bad in (b"", b"00", b"00-" + b"g" * 32 + b"-" + b"b" * 16 + b"-00", b"x" * 55):
        assert trace_id(bad) == ""
