"""Inference tables: rows in both formats, without secrets, within bounds, whatever the disk does."""

from __future__ import annotations

import datetime
import gzip
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servestate.planner.table import Payloads
from servestate.runtime.router.records import parquet, payloads, writer
from servestate.runtime.router.records.aggregation import aggregated
from servestate.runtime.router.records.payloads import Entry, ParquetTable, PayloadLogs, row
from servestate.runtime.router.records.record import Record
from servestate.runtime.router.records.redaction import Redaction
from servestate.runtime.router.records.rotation import Rotation
from servestate.runtime.router.records.writer import Room
from servestate.runtime.router.routing import LiveTable
from tests.router.records import PAYLOADS, live, recorded, routes

TABLE = live(routes(payloads=PAYLOADS))


def said(request: bytes = b'{"q":1}', answer: bytes = b'{"a":1}', **fields: Any) -> Record:
    return recorded(TABLE, request=request, answer=answer, **fields)


def one_row(record: Record, rule: Payloads = PAYLOADS, secrets: tuple[str, ...] = ()) -> dict[str, Any]:
    return row(Entry(record, rule, Redaction(secrets)))


def logs(
    folder: Path, rule: Payloads = PAYLOADS, secrets: tuple[str, ...] = (), keep: int = 9
) -> PayloadLogs:
    made = PayloadLogs(folder, Rotation(1 << 20, keep))
    table = live(routes(payloads=rule)).source
    made.check(table)
    made.adopt(table, secrets)
    return made


def close(made: PayloadLogs) -> None:
    made.close(5.0)
    assert not made.errors


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Longest:
    """How long no other thread got its turn, at most, while this is open."""

    stood_still_s = 0.0

    def __enter__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(0.001)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        sys.setswitchinterval(self._interval)

    def _watch(self) -> None:
        last = time.perf_counter()
        while not self._over.is_set():
            time.sleep(0.0005)
            now = time.perf_counter()
            self.stood_still_s = max(self.stood_still_s, now - last)
            last = now


def test_a_row_has_the_columns_of_the_serving_api(tmp_path: Path) -> None:
    made = logs(tmp_path, replace(PAYLOADS, percent=25))
    made.ended(said(client_request_id="mine", cut="lost", status=200))
    close(made)
    (line,) = (tmp_path / "main.logs.chat_payload/payload.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "request_date": "2026-09-21",
        "databricks_request_id": "0123456789abcdef-1",
        "client_request_id": "mine",
        "request_time": "2026-09-21T14:13:20.123000Z",
        "status_code": 200,
        "sampling_fraction": 0.25,
        "execution_duration_ms": 300,
        "request": '{"q":1}',
        "response": '{"a":1}',
        "served_entity_id": "a",
        "logging_error_codes": [],
        "requester": "ann@example.com",
        "request_metadata": {
            "endpoint_name": "chat-ep",
            "model_name": "model-a",
            "config_version": "3",
            "streaming": "false",
            "cut": "lost",
        },
    }


def test_parquet_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    import pyarrow.parquet as reader  # type: ignore[import-untyped]  # it ships no types

    made = logs(tmp_path, replace(PAYLOADS, format="parquet", max_body_bytes=10))
    for number in range(50):
        made.ended(said(answer=b"%d" % number * 20))
    close(made)
    (path,) = (tmp_path / PAYLOADS.table).glob("*.parquet")
    found = reader.read_table(path).to_pylist()
    assert [one["response"] for one in found] == [(f"{n}" * 20)[:10] for n in range(50)]
    assert found[0]["request_date"] == datetime.date(2026, 9, 21)
    assert found[0]["request_time"].timestamp() == pytest.approx(1_790_000_000.123)
    assert found[0]["logging_error_codes"] == ["MAX_RESPONSE_SIZE_EXCEEDED"]
    assert dict(found[0]["request_metadata"])["model_name"] == "model-a"
    assert [field.name for field in reader.read_schema(path)] == list(one_row(said()))


def test_parquet_files_are_written_by_size_and_by_age_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    monkeypatch.setattr(payloads, "PARQUET_BYTES", 100)
    folder = tmp_path / "table"
    table = ParquetTable(folder, most_bytes=20_000, worker=1, room=Room(1 << 20))
    waiting = deque([Entry(said(), PAYLOADS, Redaction())])
    table.write(waiting, last=False)
    assert len(waiting) == 1, "neither full nor old"
    assert not folder.exists()
    monkeypatch.setattr(payloads, "PARQUET_S", 0.0)
    table.write(waiting, last=False)
    assert not waiting
    monkeypatch.setattr(payloads, "PARQUET_S", 3600.0)
    for _ in range(12):
        waiting.append(Entry(said(answer=b"x" * 100), PAYLOADS, Redaction()))
        table.write(waiting, last=False)
        assert not waiting
    files = sorted(folder.iterdir())
    assert 1 < len(files) < 12
    assert sum(path.stat().st_size for path in files) <= 20_000
    assert all(path.name.endswith("-w1.parquet") for path in files)
    assert {path.stat().st_mode & 0o077 for path in (folder, *files)} == {0}, "nobody else reads it"


def test_without_pyarrow_the_table_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "find_spec", lambda name: None)
    wanted = live(routes(payloads=replace(PAYLOADS, format="parquet"))).source
    with pytest.raises(ValueError, match=r"endpoint 'chat-ep'(.|\n)*servestate\[parquet\]"):
        PayloadLogs(tmp_path, Rotation()).check(wanted)
    with pytest.raises(ValueError, match="no folder"):
        PayloadLogs(None, Rotation()).check(live(routes(payloads=PAYLOADS)).source)


def test_bodies_are_cut_and_marked() -> None:
    rule = replace(PAYLOADS, max_body_bytes=11)
    found = one_row(said(request="ä".encode() * 8, answer=b"x" * 11), rule)
    assert found["request"] == "ä" * 5, "no half of a character"
    assert found["response"] == "x" * 11
    assert found["logging_error_codes"] == ["MAX_REQUEST_SIZE_EXCEEDED"]


@pytest.mark.parametrize("body", [b"\xff\xfe not text", gzip.compress(b"packed")[:-3] + b"???", b""])
def test_any_body_becomes_text(body: bytes) -> None:
    assert isinstance(one_row(said(answer=body))["response"], str)


def test_packed_answers_are_unpacked() -> None:
    assert one_row(said(answer=gzip.compress(b'{"a":2}')))["response"] == '{"a":2}'


# Redaction.

KEYS = (
    "sk-proj-abcdefghijklmnopqrstuvwx",
    "dapi0123456789abcdef0123456789abcdef",
    "hf_abcdefghijklmnopqrstuvwxyz",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "AKIAIOSFODNN7EXAMPLE",
    "AIzaSyA-abcdefghijklmnopqrstuvwxyz012345",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "-----BEGIN RSA PRIVATE KEY-----\\nMIIEpAIBAAKC\\n-----END RSA PRIVATE KEY-----",
)


@pytest.mark.parametrize("key", KEYS)
def test_known_kinds_of_keys_are_hidden(key: str) -> None:
    text = f'{{"messages":[{{"content":"use {key} please"}}]}}'
    hidden = Redaction().hide(text)
    assert hidden == '{"messages":[{"content":"use *** please"}]}'


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ('{"Authorization": "Basic x"}', '{"Authorization": "***"}'),
        ('{"api_key":"short","b":1}', '{"api_key":"***","b":1}'),
        ('{"X-API-Key" : "a\\"b","b":1}', '{"X-API-Key" : "***","b":1}'),
        ('{"openai_api_key":"x"}', '{"openai_api_key":"***"}'),
        (
            '{"arguments":"{\\"password\\": \\"p \\\\\\" w\\", \\"n\\": 1}"}',
            '{"arguments":"{\\"password\\": \\"***\\", \\"n\\": 1}"}',
        ),
        ('{"password":"ends in one \\\\","b":1}', '{"password":"***","b":1}'),
        (
            '{"secret":{"deep":1},"aws_secret_access_key":"x"}',
            '{"secret":{"deep":1},"aws_secret_access_key":"***"}',
        ),
        ('{"client_secret":"","x":"y"}', '{"client_secret":"***","x":"y"}'),
        ('{"content":"Authorization: Bearer abcdefghijklmnop"}', '{"content":"Authorization: Bearer ***"}'),
    ],
)
def test_members_that_name_secrets_are_hidden(text: str, hidden: str) -> None:
    assert Redaction().hide(text) == hidden
    json.loads(hidden)


@pytest.mark.parametrize(
    "text",
    [
        '{"token":"the","logprob":-0.1}',
        '{"max_tokens":5,"content":"what is a password? a secret!"}',
        '{"content":"task-oriented sk-learn and the bearer of news"}',
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redaction().hide(text) == text


def test_configured_values_are_hidden_in_every_form_and_where_the_text_was_cut() -> None:
    value = 'p"ss/wörd-with-length'
    redaction = Redaction([value, "abc", ""])
    for text in (
        value,
        json.dumps(value, ensure_ascii=False),
        json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=False),
    ):
        assert "wörd" not in redaction.hide(f"<{text}>")
    assert redaction.hide("abc") == "abc", "too short to be looked for"
    for kept in range(8, len(value)):
        assert redaction.hide("text " + value[:kept], cut=True) == "text ***"
    body = b"text " + value[:12].encode()
    shown = one_row(said(answer=body), replace(PAYLOADS, max_body_bytes=len(body) - 1), (value,))
    assert shown["response"] == "text ***"
    assert redaction.hide("text " + value[:12]) == "text " + value[:12]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("before", ["key:\\n", "a\\tb \\t", "\\u000a", "ключ"])
def test_a_key_begins_after_an_escaped_character_too(before: str, key: str) -> None:
    assert Redaction().hide(before + key) == before + "***"


PUBLIC = ('{"password":"', "Bearer ")


@pytest.mark.parametrize(
    "key", [*KEYS[:-1], '{"password":"0123456789abcdef', "Bearer abcdefghijklmnopqrstuvwx"]
)
def test_half_a_key_at_a_cut_is_hidden(key: str) -> None:
    """Wherever the cut is, and whether or not what follows it is known."""
    public = next((len(one) for one in PUBLIC if key.startswith(one)), 0)
    for kept in range(max(public, 11), len(key)):
        assert Redaction().hide(f"use {key[:kept]}", cut=True) == f"use {key[:public]}***"
    body = f"{'x' * 500} {key} {' ' * 60_000}".encode()
    for most in range(501 + public, 502 + len(key)):
        found = one_row(said(answer=body), replace(PAYLOADS, max_body_bytes=most))
        assert found["logging_error_codes"] == ["MAX_RESPONSE_SIZE_EXCEEDED"]
        assert set(found["response"][501 + public :]) <= set("* "), "the whole key was seen"


def test_half_of_a_short_value_at_a_cut_is_hidden() -> None:
    redaction = Redaction(["tiger!", "a-long-configured-value"])
    assert redaction.hide("it is tig", cut=True) == "it is ***"
    assert redaction.hide("it is ti", cut=True) == "it is ti"
    assert redaction.hide("it is a-long-c", cut=True) == "it is ***"


def test_members_are_found_wherever_they_stand_in_a_long_text() -> None:
    member = '"my_api_key" : "abc"'
    for before in (16_360, 16_380, 16_384, 16_390, 32_768, 40_000):
        assert Redaction().hide("x" * before + member) == "x" * before + '"my_api_key" : "***"'
    many = f"{'x' * 1000}{member}" * 200
    assert Redaction().hide(many) == many.replace("abc", "***")


def test_only_what_may_be_written_is_looked_through() -> None:
    """And never much of it at once, since the loop stands still meanwhile."""
    body = b'{"messages":[{"role":"user","content":"' + b'say \\"hi\\" to the dog. ' * 700_000
    longest = Longest()
    with longest:
        found = one_row(said(request=body))
    assert len(found["request"]) == PAYLOADS.max_body_bytes
    assert longest.stood_still_s < 0.05


def test_redaction_takes_linear_time() -> None:
    for text in (
        "eyJ-" * 200_000,
        "\\neyJ" * 200_000,
        "-----BEGIN PRIVATE KEY----------END " * 5_000,
        '"password":"' * 20_000,
        '"api_key":"' + '\\"' * 200_000,
        "\\" * 500_000,
        '"' + "a_" * 300_000,
        '"secret"' + " " * 500_000,
        "sk-" * 100_000,
        "eyJ" * 300_000 + ".eyJ",
        "eyJaaaaaaaa.eyJ" * 60_000,
        "gh" * 500_000,
        "-----BEGIN PRIVATE KEY-----" * 5_000,
    ):
        began = time.perf_counter()
        Redaction(["a-configured-value"]).hide(text)
        assert time.perf_counter() - began < 2.0, text[:20]


# Streams.


def events(*data: object) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in data)


def delta(**members: object) -> dict[str, object]:
    return {"index": 0, "delta": members}


def test_a_stream_is_one_answer() -> None:
    first = {"id": "1", "object": "chat.completion.chunk", "model": "m", "choices": [delta(role="assistant")]}
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ":1}"}}
    stream = events(
        first,
        {"choices": [delta(content="Hel"), {**delta(content="x"), "index": 1}]},
        {"choices": [{**delta(content="lo"), "finish_reason": None}]},
        {"choices": [delta(tool_calls=[call])]},
        {"choices": [delta(tool_calls=[more])]},
        {"choices": [{**delta(), "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    )
    stream += b"data: [DONE]\n\n"
    found = json.loads(one_row(said(answer=stream, streaming=True))["response"])
    assert found["choices"][0] == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "Hello",
            "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
        "finish_reason": "stop",
    }
    assert found["choices"][1]["message"] == {"content": "x"}
    assert found["usage"] == {"prompt_tokens": 1, "completion_tokens": 2}
    assert (found["id"], found["model"]) == ("1", "m")


def test_completions_and_broken_streams() -> None:
    stream = events({"choices": [{"index": 0, "text": "a"}]}, {"choices": [{"index": 0, "text": "b"}]})
    assert json.loads(aggregated(stream + b'data: {"choi'))["choices"] == [{"index": 0, "text": "ab"}]
    broken = events({"choices": [{"index": 0, "text": "a"}]}, {"error": {"message": "lost"}})
    assert json.loads(aggregated(broken))["error"] == {"message": "lost"}
    for other in (
        b"data: no json\n\ndata: {}\n\n",
        events([1]),
        events({"type": "response.created"}),
        b"data: [DONE]\n\n",
    ):
        assert aggregated(other) == other


# Bounds and faults.


def test_bodies_beyond_the_queue_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payloads, "ROOM_BYTES", 100_000)
    (tmp_path / "main.logs.chat_payload").write_text("in the way")
    made = logs(tmp_path)
    for _ in range(100):
        made.ended(said(answer=b"x" * 9000))
    assert made.dropped == 91
    until(lambda: bool(made.errors))
    (tmp_path / "main.logs.chat_payload").unlink()
    close(made)
    assert len((tmp_path / "main.logs.chat_payload/payload.jsonl").read_text().splitlines()) == 9
    assert made.dropped == 91


def tables(folder: Path, count: int, **more: Any) -> tuple[PayloadLogs, LiveTable]:
    """So many inference tables, of the endpoints ep-0, ep-1 and so on."""
    rules = (replace(PAYLOADS, table=f"main.logs.{n}", **more) for n in range(count))
    table = live(*(routes(f"ep-{n}", payloads=rule) for n, rule in enumerate(rules)))
    made = PayloadLogs(folder, Rotation(1 << 26, 3))
    made.adopt(table.source, ())
    return made, table


def rows(folder: Path, number: int) -> list[dict[str, Any]]:
    path = folder / f"main.logs.{number}/payload.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_all_tables_share_a_thread_and_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that cannot be written fill the room one after the other; the last one gets its part."""
    monkeypatch.setattr(payloads, "ROOM_BYTES", 1_000_000)
    monkeypatch.setattr(writer, "_TURN_BYTES", 20_000)
    before = threading.active_count()
    made, table = tables(tmp_path, 10)
    assert threading.active_count() == before + 1
    for number in range(9):
        (tmp_path / f"main.logs.{number}").write_text("in the way")
        for _ in range(200):
            made.ended(recorded(table, f"ep-{number}", answer=b"x" * 9000))
    until(lambda: len(made.errors) == 9)
    held = [queue.held for queue in made.queues.values()]
    assert 980_000 < sum(held) <= 1_000_000
    for _ in range(9):
        made.ended(recorded(table, "ep-9", answer=b"y" * 9000))
    until(lambda: len(rows(tmp_path, 9)) == 9)
    assert made.dropped >= 9 * 200 - 99
    for number in range(9):
        (tmp_path / f"main.logs.{number}").unlink()
    made.close(5.0)
    assert sum(len(rows(tmp_path, number)) for number in range(9)) == 9 * 200 - made.dropped
    assert threading.active_count() == before


def test_parquet_tables_wait_for_more_rows_only_while_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    monkeypatch.setattr(payloads, "ROOM_BYTES", 200_000)
    made, table = tables(tmp_path, 4, format="parquet")
    for number in range(4):
        made.ended(recorded(table, f"ep-{number}", answer=b"x" * 9000))
    time.sleep(0.5)
    assert not list(tmp_path.glob("*/*.parquet"))
    for number in range(12):
        made.ended(recorded(table, f"ep-{number % 4}", answer=b"x" * 9000))
    until(lambda: bool(list(tmp_path.glob("*/*.parquet"))))
    assert made.dropped == 0
    made.close(5.0)


def test_a_table_waits_for_a_turn_of_the_others_and_not_for_all_that_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_TURN_BYTES", 100_000)
    made, table = tables(tmp_path, 2)
    for _ in range(60):
        made.ended(recorded(table, "ep-0", answer=b'{"a":"hello"}' * 7_000))
    made.ended(recorded(table, "ep-1"))
    until(lambda: len(rows(tmp_path, 1)) == 1)
    assert len(rows(tmp_path, 0)) < 50
    made.close(10.0)
    assert len(rows(tmp_path, 0)) == 60


def test_no_more_of_a_request_waits_than_may_be_written(tmp_path: Path) -> None:
    made = logs(tmp_path, replace(PAYLOADS, max_body_bytes=100))
    record = said(request=b"x" * 5_000_000)
    made.ended(record)
    assert len(record.request or b"") < 20_000
    close(made)
    (line,) = (tmp_path / PAYLOADS.table / "payload.jsonl").read_text().splitlines()
    assert json.loads(line)["logging_error_codes"] == ["MAX_REQUEST_SIZE_EXCEEDED"]


def test_a_new_rule_takes_over_and_the_old_one_ends(tmp_path: Path) -> None:
    made = logs(tmp_path)
    made.ended(said())
    other = replace(PAYLOADS, table="main.logs.other")
    made.adopt(live(routes(payloads=other)).source, ())
    made.ended(said())
    made.adopt(live(routes()).source, ())
    made.ended(said())
    assert not made.queues
    for name in (PAYLOADS.table, other.table):
        path = tmp_path / name / "payload.jsonl"
        until(lambda p=path: p.exists() and len(p.read_text().splitlines()) == 1)  # type: ignore[misc]


def test_rotation_by_size(tmp_path: Path) -> None:
    made = PayloadLogs(tmp_path, Rotation(2000, keep=100))
    made.adopt(live(routes(payloads=PAYLOADS)).source, ())
    for number in range(40):
        made.ended(said(client_request_id=str(number)))
    close(made)
    files = list((tmp_path / PAYLOADS.table).iterdir())
    assert len(files) > 5
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(int(one["client_request_id"]) for one in found) == list(range(40))
