"""Usage: a line per request, and sums that stay small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from servestate.planner.access import Caller
from servestate.runtime.router.records.record import Usage
from servestate.runtime.router.records.rotation import Rotation
from servestate.runtime.router.records.usage import OTHERS, UsageLog
from tests.router.records import live, recorded, routes


def test_a_line_says_who_used_how_much(tmp_path: Path) -> None:
    log = UsageLog(tmp_path / "usage", Rotation())
    record = recorded(
        live(), usage=Usage(3, 4), client_request_id="c" * 999, usage_context={"project": "x"}, streaming=True
    )
    log.ended(record)
    log.ended(recorded(live(), usage_context={"long": "x" * 5000}))
    assert log.writer is not None
    log.writer.close(1.0)
    lines = [json.loads(line) for line in (tmp_path / "usage/usage.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "request_time": "2026-09-21T14:13:20.123Z",
        "databricks_request_id": "0123456789abcdef-1",
        "client_request_id": "c" * 256,
        "endpoint_name": "chat-ep",
        "served_entity_name": "a",
        "requester": "ann@example.com",
        "status_code": 200,
        "request_streaming": True,
        "execution_duration_ms": 300,
        "input_token_count": 3,
        "output_token_count": 4,
        "estimated": False,
        "usage_context": {"project": "x"},
    }
    assert lines[1]["input_token_count"] is None
    assert (lines[1]["usage_context"], lines[1]["usage_context_cut"]) == (None, True)


def sums(log: UsageLog) -> dict[tuple[Any, ...], tuple[int, int, int]]:
    return {
        (one["endpoint"], one["entity"], one["requester"], one["estimated"]): (
            one["requests"],
            one["input_tokens"],
            one["output_tokens"],
        )
        for one in log.report()
    }


def test_sums_by_entity_caller_and_certainty() -> None:
    table = live()
    log = UsageLog(None, Rotation())
    for usage in (Usage(1, 2), Usage(10, 20), Usage(5, 6, estimated=True)):
        log.ended(recorded(table, usage=usage))
    log.ended(recorded(table, entity="b", usage=Usage(7, 8), caller=None))
    assert sums(log) == {
        ("chat-ep", "a", "ann@example.com", False): (2, 11, 22),
        ("chat-ep", "a", "ann@example.com", True): (1, 5, 6),
        ("chat-ep", "b", "", False): (1, 7, 8),
    }


def test_callers_without_end_do_not_fill_the_memory() -> None:
    table = live()
    log = UsageLog(None, Rotation())
    for number in range(3000):
        log.ended(recorded(table, usage=Usage(1, 1), caller=Caller(f"user-{number}")))
    found = sums(log)
    assert len(found) == 1001
    assert found["chat-ep", "a", OTHERS, False] == (2000, 2000, 2000)


def test_sums_of_what_is_gone_go() -> None:
    table = live(routes(), routes("other"))
    log = UsageLog(None, Rotation())
    for endpoint in ("chat-ep", "other"):
        log.ended(recorded(table, endpoint, "b", usage=Usage(1, 1)))
        log.ended(recorded(table, endpoint, "a", usage=Usage(1, 1)))
    log.forget_absent(live(routes(entities="a")))
    assert [key[:2] for key in sums(log)] == [("chat-ep", "a")]
