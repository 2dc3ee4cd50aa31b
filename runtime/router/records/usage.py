"""Who used how many tokens: a line per request, and sums for the report.

Of what callers say of themselves (`client_request_id`, `usage_context`) a bounded part is kept, in the lines
only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from servestate.runtime.router.records.access_log import rfc3339
from servestate.runtime.router.records.requester import requester
from servestate.runtime.router.records.rotation import RotatingFile, Rotation, of_worker
from servestate.runtime.router.records.writer import Lines, Writer

if TYPE_CHECKING:
    from servestate.runtime.router.records.record import Record
    from servestate.runtime.router.routing import LiveTable

OTHERS = "(others)"
_REQUESTERS = 1000
"""How many are told apart in the sums of one entity; the rest is summed as `OTHERS`."""
_ID_CHARACTERS = 256
_CONTEXT_BYTES = 4096
_QUEUE_BYTES = 8 << 20

Key = tuple[str, bool]
Sums = dict[Key, list[int]]


class UsageLog:
    """The usage of one worker. `folder` is where its file is, `usage.jsonl`; None: sums only."""

    def __init__(self, folder: Path | None, rotation: Rotation, worker: int = 0) -> None:
        self.writer: Writer | None = None
        if folder is not None:
            file = RotatingFile(of_worker(folder / "usage.jsonl", worker), rotation)
            self.writer = Writer("usage", Lines(file), _QUEUE_BYTES)
        self._sums: dict[tuple[str, str], Sums] = {}

    def ended(self, record: Record) -> None:
        """A request is over, whose endpoint keeps its usage. Names are those of the serving API's table of
        usage, where it has them."""
        caller = requester(record.caller)
        usage = record.usage
        prompt, completion, estimated = (
            (usage.prompt, usage.completion, usage.estimated) if usage is not None else (0, 0, False)
        )
        self._add(record.endpoint.name, record.entity.name, (caller, estimated), prompt, completion)
        if self.writer is None:
            return
        line = orjson.dumps(
            {
                "request_time": rfc3339(record.wall),
                "databricks_request_id": record.request_id.decode("ascii"),
                "client_request_id": record.client_request_id[:_ID_CHARACTERS],
                "endpoint_name": record.endpoint.name,
                "served_entity_name": record.entity.name,
                "requester": caller,
                "status_code": record.status,
                "request_streaming": record.streaming,
                "execution_duration_ms": int(record.total_s * 1000),
                "input_token_count": prompt if usage is not None else None,
                "output_token_count": completion if usage is not None else None,
                "estimated": estimated,
                **_context(record.usage_context),
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        self.writer.put(line, len(line))

    def forget_absent(self, table: LiveTable) -> None:
        """Drop the sums of what `table` does not have."""
        self._sums = {
            (endpoint, entity): sums
            for (endpoint, entity), sums in self._sums.items()
            if endpoint in table.endpoints and entity in table.endpoints[endpoint].by_name
        }

    def report(self) -> list[dict[str, Any]]:
        """The sums since the router started, for its report."""
        return [
            {
                "endpoint": endpoint,
                "entity": entity,
                "requester": caller,
                "estimated": estimated,
                "requests": requests,
                "input_tokens": prompt,
                "output_tokens": completion,
            }
            for (endpoint, entity), sums in self._sums.items()
            for (caller, estimated), (requests, prompt, completion) in sums.items()
        ]

    def _add(self, endpoint: str, entity: str, key: Key, prompt: int, completion: int) -> None:
        sums = self._sums.get((endpoint, entity))
        if sums is None:
            sums = self._sums[endpoint, entity] = {}
        found = sums.get(key)
        if found is None:
            if len(sums) >= _REQUESTERS:
                key = (OTHERS, key[1])
            found = sums.setdefault(key, [0, 0, 0])
        found[0] += 1
        found[1] += prompt
        found[2] += completion


def _context(given: dict[str, Any] | None) -> dict[str, Any]:
    """The caller's own tags, unless they are too long to be tags."""
    if not given:
        return {}
    if len(orjson.dumps(given)) > _CONTEXT_BYTES:
        return {"usage_context": None, "usage_context_cut": True}
    return {"usage_context": given}
