"""Which metrics there are, and the form in which one process hands them to another.

A snapshot is plain JSON, `{family: [[labels, value], ...]}`, or `[labels, counts, sum]` in a histogram, with
labels in the family's order. No label comes from a caller's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from servestate.runtime.router.records.counters import (
    DURATION_S,
    FIRST_TOKEN_S,
    OWN_S,
    PER_TOKEN_S,
    QUEUE_S,
    TOKENS,
)

Sample = list[Any]
Snapshot = dict[str, list[Sample]]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `bounds` are those of a histogram; `highest` says that of several workers' numbers the
    highest counts and not the sum."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()
    highest: bool = False


_OPERATION = ("endpoint", "entity", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

FAMILIES: dict[str, Family] = {
    "gen_ai_server_request_duration_seconds": Family(
        "histogram", "From the request to the end of its answer.", (*_OPERATION, "error_type"), DURATION_S
    ),
    "gen_ai_server_time_to_first_token_seconds": Family(
        "histogram", "From the request to the first content of a stream.", _OPERATION, FIRST_TOKEN_S
    ),
    "gen_ai_server_time_per_output_token_seconds": Family(
        "histogram", "Time per token of a stream after its first.", _OPERATION, PER_TOKEN_S
    ),
    "gen_ai_client_operation_duration_seconds": Family(
        "histogram",
        "Operations on external models, of which the router is the client, with all attempts before.",
        (*_OPERATION, "error_type"),
        DURATION_S,
    ),
    "gen_ai_client_operation_time_to_first_chunk_seconds": Family(
        "histogram", "The same, of a stream, to its first content.", _OPERATION, FIRST_TOKEN_S
    ),
    "gen_ai_client_operation_time_per_output_chunk_seconds": Family(
        "histogram", "Time per chunk of such a stream after its first, as its mean.", _OPERATION, PER_TOKEN_S
    ),
    "gen_ai_client_token_usage": Family(
        "histogram",
        "Tokens of a request as its model's server stated them.",
        (*_OPERATION, "gen_ai_token_type"),
        TOKENS,
    ),
    "servestate_split_assigned_total": Family(
        "counter", "Turns of the split since its weights last changed.", ("endpoint", "entity", "policy")
    ),
    "servestate_requests_total": Family(
        "counter",
        "Requests by the status of their answer (none: the client left before); how is split, direct or "
        "refused, the last by the router before an entity was chosen.",
        ("endpoint", "entity", "code", "how"),
    ),
    "servestate_inflight": Family("gauge", "Requests that run.", ("endpoint", "entity")),
    "servestate_attempts_total": Family(
        "counter",
        "Attempts to have a request answered, by what became of them.",
        ("endpoint", "entity", "outcome"),
    ),
    "servestate_fallbacks_total": Family(
        "counter", "Requests that went on to another entity.", ("endpoint", "from", "to", "reason")
    ),
    "servestate_ejections_total": Family(
        "counter", "Replicas that were taken out of service.", ("endpoint", "entity", "reason")
    ),
    "servestate_replica_state": Family(
        "gauge",
        "How many workers hold the replica for being in that state.",
        ("endpoint", "entity", "replica", "state"),
    ),
    "servestate_rate_limited_total": Family(
        "counter", "Requests over a limit; mode shadow: let pass all the same.", ("endpoint", "limit", "mode")
    ),
    "servestate_stream_truncated_total": Family(
        "counter", "Answers that broke off after they had begun.", ("endpoint", "entity", "reason")
    ),
    "servestate_client_gone_total": Family(
        "counter", "Clients that left before their answer was whole.", ("endpoint", "entity", "stage")
    ),
    "servestate_mirror_total": Family(
        "counter", "Copies of requests for another entity.", ("endpoint", "entity", "outcome")
    ),
    "servestate_guarded_total": Family(
        "counter",
        "Requests and answers that a guardrail refused, masked or had no room for (busy).",
        ("endpoint", "side", "action"),
    ),
    "servestate_usage_tokens_total": Family(
        "counter",
        "Tokens; estimated where the model's server did not say.",
        ("endpoint", "entity", "type", "estimated"),
    ),
    "servestate_log_dropped_total": Family("counter", "Records that a log had no room for.", ("log",)),
    "servestate_overhead_seconds": Family(
        "histogram", "The router's own time for a request.", ("endpoint", "entity"), OWN_S
    ),
    "servestate_queue_seconds": Family(
        "histogram", "Time that a request waited for its turn.", ("endpoint", "entity"), QUEUE_S
    ),
    "servestate_config_version": Family("gauge", "The version that is served.", ("endpoint",), highest=True),
    "servestate_connections": Family("gauge", "Open connections of clients.", ()),
}
"""All there is, in the order of the exposition."""
