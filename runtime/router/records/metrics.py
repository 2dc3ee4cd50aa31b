"""What one worker counts, and what it tells of it.

What no table names any more is forgotten, so that reloads do not fill the memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from servestate.runtime.router.messages.body import CHAT, COMPLETION, CUSTOM, EMBEDDING, Kind
from servestate.runtime.router.records.counters import Histogram, KindCounters, error_type
from servestate.runtime.router.records.families import FAMILIES, Family, Sample, Snapshot
from servestate.runtime.router.records.providers import OURS, UNKNOWN, provider_at

if TYPE_CHECKING:
    from servestate.runtime.router.records.record import Record
    from servestate.runtime.router.routing import LiveEndpoint, LiveEntity, LiveTable

OPERATIONS: dict[Kind, str] = {
    CHAT: "chat",
    COMPLETION: "text_completion",
    EMBEDDING: "embeddings",
    CUSTOM: "predict",
}
"""`gen_ai_operation_name` by kind of body; the last is ours, for models that are not generative."""

# A reason in a sentence, as the closed set of words that labels are made of; the first that fits.
_REASONS: Final = (
    ("rate_limited", re.compile(r"\b429\b")),
    ("status_5xx", re.compile(r"\b5\d\d\b|\b5xx\b")),
    ("status_4xx", re.compile(r"\b4\d\d\b")),
    ("ejected", re.compile(r"ejected")),
    ("not_ready", re.compile(r"not ready|no replica")),
    ("stalled", re.compile(r"progress|stall")),
    ("timeout", re.compile(r"time|within|too slow|late\b")),
    (
        "connect",
        re.compile(r"connect call|connection refused|refused|unreachable|resolve|name or service|connect\b"),
    ),
    ("bad_answer", re.compile(r"cannot be used|not http|surplus|malformed|\bbad\b")),
    ("empty", re.compile(r"empty")),
    ("lost", re.compile(r"closed|lost|reset|broke|whole|peer|eof")),
)

_TOKEN_LABELS: Final = (("input", "false"), ("output", "false"), ("input", "true"), ("output", "true"))


class Tally:
    """A counter of rare things, by the labels of its family."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], int] = {}

    def add(self, *labels: str, by: int = 1) -> None:
        """Count `by` more."""
        self.values[labels] = self.values.get(labels, 0) + by

    def keep(self, table: LiveTable, entities: Iterable[int]) -> None:
        """Forget what is of an endpoint, or of one of the entities at those places, that `table` has not."""
        self.values = {
            labels: value
            for labels, value in self.values.items()
            if _has(table, labels[0], "") and all(_has(table, labels[0], labels[at]) for at in entities)
        }

    def samples(self) -> list[Sample]:
        """As in a snapshot."""
        return [[list(labels), value] for labels, value in self.values.items()]


class Metrics:
    """The metrics of one worker. Owned by the loop.

    What each request counts for stands with its entity (`Counters`), so `ended` writes to one object; the
    rare is counted here: `ejections` (endpoint, entity, reason), `mirrored` (endpoint, entity, outcome),
    `guarded` (endpoint, side, action). What a limit refused is counted by the limits themselves.
    """

    def __init__(self) -> None:
        self.ejections, self.mirrored, self.guarded = Tally(), Tally(), Tally()
        self._attempts, self._fallbacks = Tally(), Tally()
        self._truncated, self._gone = Tally(), Tally()
        self._refused = Tally()
        self._tallies = {
            "servestate_requests_total": self._refused,
            "servestate_attempts_total": self._attempts,
            "servestate_fallbacks_total": self._fallbacks,
            "servestate_ejections_total": self.ejections,
            "servestate_stream_truncated_total": self._truncated,
            "servestate_client_gone_total": self._gone,
            "servestate_mirror_total": self.mirrored,
            "servestate_guarded_total": self.guarded,
        }

    def ended(self, record: Record) -> None:
        """Count a request that is over."""
        record.entity.counters.ended(record)
        if record.code or record.failed or record.cut or record.gone:
            self._went_wrong(record)

    def refused(self, endpoint: str, status: int) -> None:
        """Count a request that was answered before an entity was chosen."""
        self._refused.add(endpoint, "", str(status), "refused")

    def _went_wrong(self, record: Record) -> None:
        endpoint, last = record.endpoint.name, record.entity.name
        entities = [entity for entity, _ in record.failed]
        for i, (entity, text) in enumerate(record.failed):
            reason = reason_of(text)
            self._attempts.add(endpoint, entity, reason)
            following = entities[i + 1] if i + 1 < len(entities) else last
            if following != entity:
                self._fallbacks.add(endpoint, entity, following, reason)
        if record.cut:
            self._truncated.add(endpoint, last, reason_of(record.cut))
        if record.gone:
            self._gone.add(endpoint, last, _stage(record))
        if record.replica and error_type(record):
            self._attempts.add(endpoint, last, _outcome(record))

    def forget_absent(self, table: LiveTable) -> None:
        """Drop what is counted of endpoints and entities that `table` does not have."""
        for name, tally in self._tallies.items():
            labels = FAMILIES[name].labels
            tally.keep(table, [at for at, label in enumerate(labels) if label in ("entity", "from", "to")])

    def snapshot(
        self,
        table: LiveTable,
        connections: int = 0,
        dropped: Mapping[str, int] | None = None,
        limited: Iterable[tuple[str, str, str, int]] = (),
        replicas: Iterable[tuple[str, str, str, str]] = (),
    ) -> Snapshot:
        """All metrics as they stand. `dropped` are records lost, by the name of their log; `limited` what
        limits refused (endpoint, limit, mode, how often); `replicas` how each is (endpoint, entity, replica,
        state)."""
        found: Snapshot = {name: [] for name in FAMILIES}
        policies = {routes.name: routes.traffic.split for routes in table.source.endpoints}
        for endpoint in table.endpoints.values():
            found["servestate_config_version"].append([[endpoint.name], endpoint.config_version])
            for entity, assigned in zip(endpoint.entities, endpoint.split.assigned, strict=True):
                place = [endpoint.name, entity.name, policies[endpoint.name]]
                found["servestate_split_assigned_total"].append([place, assigned])
                for name, sample in _samples(endpoint, entity):
                    found[name].append(sample)
        for name, tally in self._tallies.items():
            found[name] += tally.samples()
        found["servestate_rate_limited_total"] = [[list(labels), count] for *labels, count in limited]
        found["servestate_replica_state"] = [[list(labels), 1] for labels in replicas]
        found["servestate_log_dropped_total"] = [[[log], count] for log, count in (dropped or {}).items()]
        found["servestate_connections"] = [[[], connections]]
        return found


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Those of several workers as one: sums, and the highest where that is what counts."""
    merged: Snapshot = {name: [] for name in FAMILIES}
    seen: dict[tuple[str, ...], Sample] = {}
    for snapshot in snapshots:
        for name, samples in snapshot.items():
            for labels, *numbers in samples:
                key = (name, *labels)
                if key in seen:
                    seen[key][1:] = _together(FAMILIES[name], seen[key][1:], numbers)
                else:
                    seen[key] = [labels, *numbers]
                    merged[name].append(seen[key])
    return merged


def _together(family: Family, one: list[Any], other: list[Any]) -> list[Any]:
    if family.kind == "histogram":
        return [[a + b for a, b in zip(one[0], other[0], strict=True)], one[1] + other[1]]
    return [max(one[0], other[0]) if family.highest else one[0] + other[0]]


def _samples(endpoint: LiveEndpoint, entity: LiveEntity) -> Iterator[tuple[str, Sample]]:
    route, counters = entity.route, entity.counters
    place = [endpoint.name, route.name]
    yield "servestate_inflight", [place, counters.inflight]
    yield "servestate_attempts_total", [[*place, "ok"], counters.well]
    yield "servestate_overhead_seconds", _sample(place, counters.own)
    yield "servestate_queue_seconds", _sample(place, counters.queued)
    for how, codes in counters.codes.items():
        for status, count in codes.items():
            yield "servestate_requests_total", [[*place, str(status) if status else "none", how], count]
    for (kind, estimated), count in zip(_TOKEN_LABELS, counters.tokens, strict=True):
        yield "servestate_usage_tokens_total", [[*place, kind, estimated], count]
    for body, numbers in counters.kinds.items():
        labels = [*place, OPERATIONS.get(body, "_OTHER"), provider_of(entity), route.model]
        yield from _of_kind(labels, numbers, external=route.fixed_path)


def provider_of(entity: LiveEntity) -> str:
    """`gen_ai_provider_name`: who serves the model, ourselves for one that runs here."""
    route = entity.route
    if not route.fixed_path:
        return OURS
    return provider_at(route.backends[0].url) if route.backends else UNKNOWN


def _of_kind(labels: list[str], numbers: KindCounters, *, external: bool) -> Iterator[tuple[str, Sample]]:
    for error, durations in numbers.durations.items():
        yield "gen_ai_server_request_duration_seconds", _sample([*labels, error], durations)
        if external:
            yield "gen_ai_client_operation_duration_seconds", _sample([*labels, error], durations)
    yield "gen_ai_server_time_to_first_token_seconds", _sample(labels, numbers.first)
    if external:
        yield "gen_ai_client_operation_time_to_first_chunk_seconds", _sample(labels, numbers.first)
        yield "gen_ai_client_operation_time_per_output_chunk_seconds", _sample(labels, numbers.per_chunk)
    yield "gen_ai_server_time_per_output_token_seconds", _sample(labels, numbers.per_token)
    yield "gen_ai_client_token_usage", _sample([*labels, "input"], numbers.prompt)
    yield "gen_ai_client_token_usage", _sample([*labels, "output"], numbers.completion)


def _sample(labels: list[str], histogram: Histogram) -> Sample:
    return [labels, list(histogram.counts), histogram.sum]


def _has(table: LiveTable, endpoint: str, entity: str) -> bool:
    """ "" stands for no endpoint in particular, or for no entity."""
    found = table.endpoints.get(endpoint)
    if found is None:
        return not endpoint
    return not entity or entity in found.by_name


@lru_cache(maxsize=256)
def reason_of(text: str) -> str:
    """The word for a reason that was written for people."""
    lowered = text.lower()
    return next((word for word, pattern in _REASONS if pattern.search(lowered)), "other")


def _outcome(record: Record) -> str:
    """What became of the last attempt of a request that did not end well."""
    if record.gone:
        return "client_gone"
    return "cut" if record.cut else f"status_{record.status // 100}xx"


def _stage(record: Record) -> str:
    """When the client left."""
    if not record.replica:
        return "connecting"
    return "waiting" if record.first_s < 0 else "relaying"
