"""Everything that is kept of requests, behind one door: metrics, the access log, usage, inference tables and
traces. Each of them may fail; no request does because of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from servestate.planner.table import RoutingTable
from servestate.providers.secrets import Secrets, fill
from servestate.runtime.router.records.access_log import AccessLog
from servestate.runtime.router.records.families import Snapshot
from servestate.runtime.router.records.keeping import BooksConfig
from servestate.runtime.router.records.metrics import Metrics
from servestate.runtime.router.records.payloads import PayloadLogs
from servestate.runtime.router.records.record import Record
from servestate.runtime.router.records.traces import Traces
from servestate.runtime.router.records.usage import UsageLog
from servestate.runtime.router.routing import LiveTable


class Books:
    """The books of one worker. Owned by the loop; what takes long is done by threads of each part. Nothing
    that is called for a request waits, raises, or grows without bound.

    `metrics` is also for what is rare; its counters say by which labels. `begun` stands where traces are
    kept: it makes of a request's header lines those that go upstream, with its span.
    """

    def __init__(self, config: BooksConfig, secrets: Secrets, worker: int = 0) -> None:
        """`worker` is its number, from 0. Raises InvalidInput SS643 where traces are wanted and cannot be."""
        self.metrics = Metrics()
        self._config = config
        self._secrets = secrets
        self._worker = worker
        self._traces = Traces(config.otlp) if config.otlp else None
        self.begun: Callable[[Record, bytes], bytes] | None = None
        if self._traces is not None:
            self.begun = self._traces.begun
        self._access = AccessLog(config.access_log, worker) if config.access_log is not None else None
        folder = config.folder
        self._payloads = PayloadLogs(folder and folder / "inference", config.records, worker)
        self._usage: UsageLog | None = None
        self._tracked: frozenset[str] = frozenset()

    # Tables.

    def check(self, table: RoutingTable) -> None:
        """Before `table` comes into use. Raises ValueError where what it wants kept cannot be."""
        self._payloads.check(table)

    def adopt(self, table: LiveTable) -> None:
        """`table`, which passed `check`, is in use from now on."""
        source = table.source
        self._tracked = frozenset(routes.name for routes in source.endpoints if routes.usage)
        if self._tracked and self._usage is None:
            folder = self._config.folder
            self._usage = UsageLog(folder and folder / "usage", self._config.records, self._worker)
        if self._usage is not None:
            self._usage.forget_absent(table)
        self._payloads.adopt(source, _values(source, self._secrets))
        self.metrics.forget_absent(table)

    # Requests.

    def ended(self, record: Record) -> None:
        """A request that was taken on is over."""
        self.metrics.ended(record)
        if self._access is not None:
            self._access.ended(record)
        if self._usage is not None and record.endpoint.name in self._tracked:
            self._usage.ended(record)
        if record.request is not None:
            self._payloads.ended(record)
        if self._traces is not None:
            self._traces.ended(record)

    def refused(self, endpoint: str, status: int, code: str, request_id: bytes) -> None:
        """A request was answered by the router itself before it was taken on. `endpoint` is the name of one
        that exists, or ""."""
        self.metrics.refused(endpoint, status)
        if self._access is not None:
            self._access.refused(endpoint, status, code, request_id)

    # Reports.

    def snapshot(
        self,
        table: LiveTable,
        connections: int,
        limited: Iterable[tuple[str, str, str, int]] = (),
        replicas: Iterable[tuple[str, str, str, str]] = (),
    ) -> Snapshot:
        """All metrics as they stand; see `Metrics.snapshot`."""
        return self.metrics.snapshot(table, connections, self.dropped(), limited, replicas)

    def dropped(self) -> dict[str, int]:
        """Records that were lost, by the name of their log; those of logs that are kept."""
        found = {"inference_tables": self._payloads.dropped}
        if self._access is not None:
            found["access_log"] = self._access.writer.dropped
        if self._usage is not None and self._usage.writer is not None:
            found["usage"] = self._usage.writer.dropped
        if self._traces is not None:
            found["traces"] = self._traces.dropped
        return found

    def report(self) -> dict[str, Any]:
        """What the router says of its books: why one cannot be written (None: it can), what was lost, and who
        used how many tokens."""
        return {
            **self.errors(),
            "dropped": self.dropped(),
            "usage": self._usage.report() if self._usage is not None else [],
        }

    def errors(self) -> dict[str, str | None]:
        """Of `report`, why books cannot be written or sent."""
        usage = self._usage.writer if self._usage is not None else None
        return {
            "access_log_error": (self._access.writer.error if self._access is not None else "") or None,
            "usage_error": (usage.error if usage is not None else "") or None,
            "inference_tables_error": "; ".join(self._payloads.errors) or None,
            "traces_error": (self._traces.exporter.error if self._traces is not None else "") or None,
        }

    def close(self, within_s: float = 1.0) -> None:
        """Write and send what is left, all together within that time. Blocks: for when nothing is served any
        more."""
        until = time.monotonic() + within_s
        writers = [log.writer for log in (self._access, self._usage) if log is not None]
        closing = [one for one in (*writers, self._payloads) if one is not None]
        for writer in closing:
            writer.stop()  # all at once, so that they end side by side
        for writer in closing:
            writer.close(max(until - time.monotonic(), 0.0))
        if self._traces is not None:
            self._traces.close(max(until - time.monotonic(), 0.0))


def _values(table: RoutingTable, secrets: Secrets) -> set[str]:
    """The secrets that `table` names, which were resolved when it was admitted."""
    entities = [entity for routes in table.endpoints for entity in routes.entities]
    references = [entity.credential.secret for entity in entities if entity.credential is not None]
    references += [backend.key for entity in entities for backend in entity.backends if backend.key]
    return {fill(reference, secrets).reveal() for reference in references}
