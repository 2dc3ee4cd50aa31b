"""Inference tables: what was asked and answered, as rows of files, without the secrets that were in it.

The columns are those of the serving API's inference tables, and `request_metadata`, which says what the
names of the others cannot. All the work is done by one thread, a turn of each table after the other.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from servestate.planner.table import Payloads, RoutingTable
from servestate.runtime.router.records import parquet
from servestate.runtime.router.records.aggregation import aggregated
from servestate.runtime.router.records.redaction import Redaction
from servestate.runtime.router.records.requester import requester
from servestate.runtime.router.records.rotation import RotatingFile, Rotation, of_worker
from servestate.runtime.router.records.writer import Destination, Queue, Room, WriterThread

if TYPE_CHECKING:
    from servestate.runtime.router.records.record import Record

ROOM_BYTES = 64 << 20
"""Of bodies that wait to be written, of all tables together."""
PARQUET_S = 30.0
"""After how long a Parquet file is written, however few its rows: until then they are in memory only."""
PARQUET_BYTES = 8 << 20
_OVERHEAD_BYTES = 1024  # of a row, beside its bodies
_GZIP = b"\x1f\x8b"
_MOST_UNPACKED = 16 << 20
_BEYOND_BYTES = 16 << 10
"""How much of a body is looked through for secrets after the last byte that is written."""
_SPACE = 64
_ID_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """A request to be recorded, with the rule that it was chosen by."""

    record: Record
    rule: Payloads
    redaction: Redaction


class PayloadLogs:
    """The inference tables of one worker, in folders by their names. `folder` None: none can be kept."""

    def __init__(self, folder: Path | None, rotation: Rotation, worker: int = 0) -> None:
        self._folder = folder
        self._rotation = rotation
        self._worker = worker
        self._rules: dict[str, Payloads] = {}
        self._redaction = Redaction()
        self._room = Room(ROOM_BYTES)
        self._thread = WriterThread("inference tables")
        self.queues: dict[Payloads, Queue[Entry]] = {}

    def check(self, table: RoutingTable) -> None:
        """Raises ValueError where what an endpoint has to have recorded cannot be: it is not served then."""
        for routes in table.endpoints:
            if routes.payloads is None:
                continue
            if self._folder is None:
                raise ValueError(f"endpoint {routes.name!r}: there is no folder for its inference table")
            if routes.payloads.format == "parquet":
                try:
                    parquet.check()
                except ValueError as error:
                    raise ValueError(f"endpoint {routes.name!r}: {error}") from None

    def adopt(self, table: RoutingTable, secrets: Iterable[str]) -> None:
        """Record by `table` from now on, which passed `check`, with these values hidden."""
        self._rules = {one.name: one.payloads for one in table.endpoints if one.payloads is not None}
        self._redaction = Redaction(secrets)
        wanted = set(self._rules.values())
        for rule in self.queues.keys() - wanted:
            self.queues.pop(rule).stop()
        for rule in wanted - self.queues.keys():
            queue = self.queues[rule] = Queue(f"inference table {rule.table}", self._open(rule), self._room)
            self._thread.add(queue)

    def ended(self, record: Record) -> None:
        """A request is over, with bodies."""
        rule = self._rules.get(record.endpoint.name)
        if rule is None:  # no longer recorded since it began
            return
        request, answer = record.request or b"", record.answer or b""
        most = rule.max_body_bytes + _BEYOND_BYTES
        if len(request) > most:
            request = record.request = request[:most]
        size = len(request) + len(answer) + _OVERHEAD_BYTES
        self.queues[rule].put(Entry(record, rule, self._redaction), size)

    @property
    def dropped(self) -> int:
        """How many were lost so far."""
        return self._room.dropped

    @property
    def errors(self) -> list[str]:
        """Why tables cannot be written at the moment."""
        return [f"{one.name}: {one.error}" for one in self.queues.values() if one.error]

    def stop(self) -> None:
        """Have what is left written."""
        self._thread.stop()

    def close(self, within_s: float) -> None:
        """`stop`, and wait for it no longer than that."""
        self._thread.close(within_s)

    def _open(self, rule: Payloads) -> Destination[Entry]:
        assert self._folder is not None
        folder = self._folder / rule.table
        if rule.format == "parquet":
            most = self._rotation.max_bytes * (self._rotation.keep + 1)
            return ParquetTable(folder, most, self._worker, self._room)
        return JsonlTable(RotatingFile(of_worker(folder / "payload.jsonl", self._worker), self._rotation))


class JsonlTable:
    """Rows as lines of a rotating file."""

    def __init__(self, file: RotatingFile) -> None:
        self._file = file

    @property
    def path(self) -> Path:
        """See `writer.Destination`."""
        return self._file.path

    def write(self, items: deque[Entry], *, last: bool) -> None:
        """See `writer.Destination`."""
        while items:
            line = orjson.dumps(row(items[0]), option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
            self._file.append(deque([line]), time.monotonic())
            items.popleft()

    def close(self) -> None:
        """See `writer.Destination`."""
        self._file.close()


class ParquetTable:
    """Rows as whole Parquet files, named by the time of their first row, of which the newest stay that are
    `most_bytes` together: as many bytes as the other format may take."""

    def __init__(self, folder: Path, most_bytes: int, worker: int, room: Room) -> None:
        """`room` is where its rows wait for more."""
        self.path = folder
        self._room = room
        self._most_bytes = most_bytes
        self._worker = worker
        self._since: float | None = None

    def write(self, items: deque[Entry], *, last: bool) -> None:
        """See `writer.Destination`. What is left waits for more."""
        if not items:
            return
        now = time.monotonic()
        if self._since is None:
            self._since = now
        waits = now - self._since < PARQUET_S and _size(items) < PARQUET_BYTES
        if waits and not last and not self._room.tight:
            return
        self.path.mkdir(0o700, parents=True, exist_ok=True)
        path = self.path / f"{time.time_ns()}-w{self._worker}.parquet"
        part = path.with_suffix(".part")
        rows = [row(entry) for entry in items]
        try:
            parquet.write(part, rows)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        items.clear()
        self._since = None
        self._forget_oldest()

    def close(self) -> None:
        """See `writer.Destination`."""

    def _forget_oldest(self) -> None:
        found = sorted(self.path.glob(f"*-w{self._worker}.parquet"), reverse=True)
        together = 0
        for index, path in enumerate(found):
            together += path.stat().st_size
            if index and together > self._most_bytes:
                path.unlink(missing_ok=True)


def row(entry: Entry) -> dict[str, Any]:
    """One row: values as both formats take them, bodies cut to the rule's size and free of secrets."""
    record, rule = entry.record, entry.rule
    request, request_cut = _text(record.request or b"", entry)
    answer, answer_cut = _text(record.answer or b"", entry)
    moment = datetime.fromtimestamp(record.wall, UTC)
    codes = []
    if request_cut:
        codes.append("MAX_REQUEST_SIZE_EXCEEDED")
    if answer_cut:
        codes.append("MAX_RESPONSE_SIZE_EXCEEDED")
    return {
        "request_date": moment.date(),
        "databricks_request_id": record.request_id.decode("ascii"),
        "client_request_id": record.client_request_id[:_ID_CHARACTERS],
        "request_time": moment.replace(microsecond=moment.microsecond // 1000 * 1000),
        "status_code": record.status,
        "sampling_fraction": rule.percent / 100,
        "execution_duration_ms": int(record.total_s * 1000),
        "request": request,
        "response": answer,
        "served_entity_id": record.entity.name,
        "logging_error_codes": codes,
        "requester": requester(record.caller),
        "request_metadata": _metadata(record),
    }


def _metadata(record: Record) -> dict[str, str]:
    endpoint = record.endpoint
    found = {
        "endpoint_name": endpoint.name,
        "model_name": record.entity.model,
        "config_version": str(endpoint.config_version),
        "streaming": "true" if record.streaming else "false",
    }
    if record.cut:
        found["cut"] = record.cut
    return found


def _text(content: bytes, entry: Entry) -> tuple[str, bool]:
    """A body as text, and whether part of it is missing. Only what may be written is looked through, and a
    little more: a secret across the cut is seen as one."""
    most = entry.rule.max_body_bytes
    cut = len(content) > most
    if content.startswith(_GZIP):
        content = _unpacked(content)
    if content[:_SPACE].lstrip().startswith(b"data:"):
        content = aggregated(content)
    looked = content[: most + _BEYOND_BYTES]
    cut = cut or len(looked) < len(content)
    text = entry.redaction.hide(looked.decode("utf-8", "replace"), cut=cut)
    whole = text.encode()
    if len(whole) <= most:
        return text, cut
    return whole[:most].decode("utf-8", "ignore"), True


def _unpacked(content: bytes) -> bytes:
    """What a body packed by gzip says, as far as it came and within bounds."""
    try:
        return zlib.decompressobj(wbits=31).decompress(content, _MOST_UNPACKED)
    except zlib.error:
        return content


def _size(items: Iterable[Entry]) -> int:
    return sum(len(entry.record.request or b"") + len(entry.record.answer or b"") for entry in items)
