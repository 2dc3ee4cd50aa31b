"""The audit log: a line for each, whole whatever is in it, for this user alone, and never without end."""

from __future__ import annotations

import json
import stat
import threading
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.runtime.api.audit import KEPT, AuditLog


def entries(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def write(log: AuditLog, caller: str = "ann", path: str = "/api/2.0/serving-endpoints") -> None:
    log.write(caller, "127.0.0.1", "POST", path, 409, "RESOURCE_CONFLICT", "id-1")


def test_a_line_says_who_what_where_and_what_came_of_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "audit.jsonl"
    write(AuditLog(path))
    (found,) = entries(path)
    assert datetime.fromisoformat(str(found.pop("at"))).utcoffset() is not None
    assert found == {
        "caller": "ann",
        "peer": "127.0.0.1",
        "verb": "POST",
        "path": "/api/2.0/serving-endpoints",
        "status": 409,
        "error_code": "RESOURCE_CONFLICT",
        "request_id": "id-1",
    }


def test_only_this_user_can_read_it(tmp_path: Path) -> None:
    write(AuditLog(tmp_path / "audit.jsonl"))
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600


@given(st.text(max_size=20), st.text(max_size=20))
def test_nobody_can_write_a_line_of_somebody_else(
    tmp_path_factory: pytest.TempPathFactory, caller: str, path: str
) -> None:
    file = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    write(AuditLog(file), caller, path)
    (found,) = entries(file)
    assert (found["caller"], found["path"]) == (caller, path)


def test_a_process_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    for caller in ("ann", "bob"):
        write(AuditLog(tmp_path / "audit.jsonl"), caller)
    assert [one["caller"] for one in entries(tmp_path / "audit.jsonl")] == ["ann", "bob"]


def test_lines_of_many_threads_are_whole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", largest=100_000)

    def work(number: int) -> None:
        for _ in range(100):
            write(log, f"caller {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [one for path in tmp_path.iterdir() for one in entries(path)]
    assert len(found) == 800


def test_it_is_begun_anew_and_the_last_few_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, largest=1)
    for number in range(KEPT + 3):
        write(log, f"caller {number}")
    kept = {file.name: entries(file)[0]["caller"] for file in tmp_path.iterdir()}
    newest = KEPT + 2
    assert kept == {
        "audit.jsonl": f"caller {newest}",
        **{f"audit.jsonl.{age}": f"caller {newest - age}" for age in range(1, KEPT + 1)},
    }


def test_a_line_is_never_split_over_two_files(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", largest=1000)
    for number in range(40):
        write(log, "x" * number)
    files = [tmp_path / "audit.jsonl", *(tmp_path / f"audit.jsonl.{age}" for age in range(1, KEPT + 1))]
    assert all(entries(file) for file in files)
    assert all(file.stat().st_size < 1000 + 300 for file in files)


def test_where_it_cannot_be_written_somebody_hears(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(OSError, match=r"audit\.jsonl"):
        write(log)
