"""Metrics: what each kind of request counts for, and the text that Prometheus reads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from servestate.planner.table import Backend, EntityRoute, Traffic
from servestate.runtime.router.messages.body import CUSTOM, EMBEDDING
from servestate.runtime.router.records.exposition import expose
from servestate.runtime.router.records.families import FAMILIES, Snapshot
from servestate.runtime.router.records.metrics import Metrics, merge, reason_of
from servestate.runtime.router.records.record import Usage
from servestate.runtime.router.routing import LiveTable
from tests.router.records import live, recorded, registry, routes

Labels = frozenset[tuple[str, str]]


def read(snapshot: Snapshot) -> dict[tuple[str, Labels], float]:
    """Every sample as Prometheus would have it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(expose(snapshot).decode())
        for sample in family.samples
    }


def value(snapshot: Snapshot, name: str, **labels: str) -> float:
    """The sum of the samples of that name that have these labels."""
    wanted = {("from" if key == "source" else key, text) for key, text in labels.items()}
    found = [number for (n, have), number in read(snapshot).items() if n == name and wanted <= have]
    assert found, (name, labels)
    return sum(found)


def counted(table: LiveTable, *records: object) -> Snapshot:
    metrics = Metrics()
    for record in records:
        metrics.ended(record)  # type: ignore[arg-type]
    return metrics.snapshot(table)


def test_a_whole_stream_is_in_every_histogram() -> None:
    table = live()
    record = recorded(
        table, streaming=True, first_s=0.05, total_s=1.05, queue_s=0.003, own_s=0.00002, usage=Usage(10, 101)
    )
    snapshot = counted(table, record)
    labels = {
        "endpoint": "chat-ep",
        "entity": "a",
        "gen_ai_operation_name": "chat",
        "gen_ai_request_model": "model-a",
        "gen_ai_provider_name": "servestate",
    }
    for name, bound, total in (
        ("gen_ai_server_request_duration_seconds", "1.28", 1.05),
        ("gen_ai_server_time_to_first_token_seconds", "0.06", 0.05),
        ("gen_ai_server_time_per_output_token_seconds", "0.01", 0.01),
    ):
        assert value(snapshot, f"{name}_count", **labels) == 1
        assert value(snapshot, f"{name}_sum", **labels) == pytest.approx(total)
        assert value(snapshot, f"{name}_bucket", le=bound, **labels) == 1
    assert value(snapshot, "gen_ai_client_token_usage_sum", gen_ai_token_type="input", **labels) == 10
    assert value(snapshot, "gen_ai_client_token_usage_sum", gen_ai_token_type="output", **labels) == 101
    assert value(snapshot, "servestate_queue_seconds_bucket", entity="a", le="0.005") == 1
    assert value(snapshot, "servestate_overhead_seconds_bucket", entity="a", le="1e-05") == 0
    assert value(snapshot, "servestate_overhead_seconds_bucket", entity="a", le="2.5e-05") == 1
    assert value(snapshot, "servestate_requests_total", entity="a", code="200", how="split") == 1
    assert value(snapshot, "servestate_attempts_total", entity="a", outcome="ok") == 1
    assert (
        value(snapshot, "servestate_usage_tokens_total", entity="a", type="output", estimated="false") == 101
    )


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://api.openai.com/v1/chat/completions", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        (
            "https://mine.openai.azure.com/openai/deployments/x/chat/completions?api-version=1",
            "azure.ai.openai",
        ),
        ("https://mine.services.ai.azure.com/models/chat/completions", "azure.ai.inference"),
        ("https://API.Anthropic.com:443/v1/messages", "anthropic"),
        ("https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1/chat/completions", "aws.bedrock"),
        ("https://europe-west4-aiplatform.googleapis.com/v1/projects/p", "gcp.vertex_ai"),
        ("https://aiplatform.googleapis.com/v1/projects/p", "gcp.vertex_ai"),
        ("https://generativelanguage.googleapis.com/v1beta/openai/chat/completions", "gcp.gemini"),
        ("https://api.cohere.com/v1", "cohere"),
        ("https://us-south.ml.cloud.ibm.com/ml/v1/text/chat", "ibm.watsonx.ai"),
        ("https://api.x.ai/v1", "x_ai"),
        ("https://dbc-1.cloud.databricks.com/serving-endpoints/e/invocations", "databricks"),
        ("https://adb-1.2.azuredatabricks.net/serving-endpoints/e/invocations", "databricks"),
        ("https://api.openai.com.evil.example/v1", "external"),
        ("https://notapi.openai.com.example/v1", "external"),
        ("https://xapi.openai.com/v1", "external"),
        ("http://127.0.0.1:9/v1", "external"),
    ],
)
def test_an_external_models_provider_is_known_by_its_host(url: str, provider: str) -> None:
    table = elsewhere(url)
    snapshot = counted(table, recorded(table, streaming=True, first_s=0.05, total_s=1.05))
    labels = {"gen_ai_provider_name": provider, "gen_ai_operation_name": "chat"}
    for name in (
        "gen_ai_server_request_duration_seconds",
        "gen_ai_client_operation_duration_seconds",
        "gen_ai_client_operation_time_to_first_chunk_seconds",
    ):
        assert value(snapshot, f"{name}_count", **labels) == 1


def test_each_chunk_after_the_first_counts_with_the_mean_of_its_stream() -> None:
    table = elsewhere("https://api.openai.com/v1")
    snapshot = counted(table, recorded(table, streaming=True, first_s=0.05, total_s=1.05, chunks=5))
    name = "gen_ai_client_operation_time_per_output_chunk_seconds"
    labels = {"gen_ai_provider_name": "openai", "gen_ai_operation_name": "chat"}
    assert value(snapshot, f"{name}_count", **labels) == 4
    assert value(snapshot, f"{name}_sum", **labels) == pytest.approx(1.0)


def elsewhere(url: str) -> LiveTable:
    """A table whose entity `a` is an external model."""
    made = routes(entities="a")
    entity = replace(made.entities[0], fixed_path=True, backends=(Backend("chat-ep/a@rev#0", url),))
    return live(replace(made, entities=(entity,)))


def test_a_model_that_runs_here_has_no_client() -> None:
    table = live()
    snapshot = counted(table, recorded(table, streaming=True, first_s=0.05))
    assert not snapshot["gen_ai_client_operation_duration_seconds"]
    assert not snapshot["gen_ai_client_operation_time_to_first_chunk_seconds"]


def test_the_bounds_are_those_of_the_conventions() -> None:
    bounds = {name: family.bounds for name, family in FAMILIES.items() if name.startswith("gen_ai")}
    assert bounds["gen_ai_server_request_duration_seconds"] == pytest.approx(
        (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    )
    assert bounds["gen_ai_client_operation_duration_seconds"] == pytest.approx(
        tuple(0.01 * 2**n for n in range(14))
    )
    assert bounds["gen_ai_server_time_to_first_token_seconds"] == (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    )
    assert bounds["gen_ai_server_time_per_output_token_seconds"] == (
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
    )
    tokens = bounds["gen_ai_client_token_usage"]
    assert (tokens[0], tokens[1], tokens[2], tokens[-1], len(tokens)) == (1, 4, 16, 67108864, 14)


def test_a_value_on_a_bound_is_within_it() -> None:
    table = live()
    snapshot = counted(table, *(recorded(table, total_s=s) for s in (0.16, 0.1601, 82.0)))
    name = "gen_ai_server_request_duration_seconds_bucket"
    assert [value(snapshot, name, le=le) for le in ("0.08", "0.16", "0.32", "81.92", "+Inf")] == [
        0,
        1,
        2,
        2,
        3,
    ]


def test_what_went_wrong_is_counted_by_few_words() -> None:
    table = live()
    snapshot = counted(
        table,
        recorded(table, status=503, code="TEMPORARILY_UNAVAILABLE"),
        recorded(table, status=500, code="something that an upstream made up"),
        recorded(table, cut="the answer made no progress for 60 s", first_s=0.1, streaming=True),
        recorded(table, gone=True, status=0),
        recorded(table, gone=True, status=0, replica=""),
        recorded(table, gone=True, first_s=0.1, streaming=True),
        recorded(table, entity="b", failed=(("a", "connect: refused"), ("a", "answered 503"))),
        recorded(table, status=429, code="REQUEST_LIMIT_EXCEEDED", failed=(("b", "answered 429"),)),
    )
    durations = "gen_ai_server_request_duration_seconds_count"
    for error, times in (
        ("TEMPORARILY_UNAVAILABLE", 1),
        ("_OTHER", 1),
        ("stream_truncated", 1),
        ("client_gone", 3),
        ("REQUEST_LIMIT_EXCEEDED", 1),
    ):
        assert value(snapshot, durations, error_type=error) == times
    assert value(snapshot, "servestate_stream_truncated_total", entity="a", reason="stalled") == 1
    for stage in ("waiting", "connecting", "relaying"):
        assert value(snapshot, "servestate_client_gone_total", entity="a", stage=stage) == 1
    assert value(snapshot, "servestate_requests_total", entity="a", code="none") == 2
    fallbacks = "servestate_fallbacks_total"
    assert value(snapshot, fallbacks, source="a", to="b", reason="status_5xx") == 1
    assert value(snapshot, fallbacks, source="b", to="a", reason="rate_limited") == 1
    assert value(snapshot, fallbacks) == 2, "the second attempt at the same entity is no fallback"
    attempts = "servestate_attempts_total"
    for outcome, times in (("connect", 1), ("status_5xx", 3), ("cut", 1), ("client_gone", 2)):
        assert value(snapshot, attempts, entity="a", outcome=outcome) == times
    assert value(snapshot, attempts, entity="b", outcome="ok") == 1
    counters = table.endpoints["chat-ep"].by_name["a"].counters
    assert counters.statuses == [0, 0, 0, 0, 1, 3]
    assert (counters.errors, sum(counters.latencies.counts)) == (3, 4), "what nobody waited for is no answer"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[Errno 111] Connect call failed ('127.0.0.1', 9)", "connect"),
        ("no answer within 120 s", "timeout"),
        ("the upstream closed the connection in the middle of its answer", "lost"),
        ("the upstream's answer cannot be used: two lengths", "bad_answer"),
        ("the upstream's event stream was empty", "empty"),
        ("the served entity 'a' is not ready", "not_ready"),
        ("503", "status_5xx"),
        ("answered 404", "status_4xx"),
        ("ünthinkable", "other"),
    ],
)
def test_reasons_become_words(text: str, word: str) -> None:
    assert reason_of(text) == word


def test_estimates_are_marked_and_in_no_histogram() -> None:
    table = live()
    records = [
        recorded(table, usage=Usage(7, 3, estimated=True)),
        recorded(table, kind=EMBEDDING, usage=Usage(5, 0)),
    ]
    snapshot = counted(table, *records)
    tokens = "servestate_usage_tokens_total"
    assert value(snapshot, tokens, entity="a", type="input", estimated="true") == 7
    assert value(snapshot, tokens, entity="a", type="output", estimated="true") == 3
    assert value(snapshot, tokens, entity="a", type="input", estimated="false") == 5
    usage = "gen_ai_client_token_usage_count"
    assert value(snapshot, usage, gen_ai_operation_name="chat") == 0
    assert value(snapshot, usage, gen_ai_operation_name="embeddings", gen_ai_token_type="input") == 1
    assert value(snapshot, usage, gen_ai_operation_name="embeddings", gen_ai_token_type="output") == 0


def test_the_rare_and_what_others_count() -> None:
    table = live(routes(traffic=Traffic(split="sticky")))
    metrics = Metrics()
    metrics.ejections.add("chat-ep", "a", "errors")
    metrics.mirrored.add("chat-ep", "b", "ok", by=2)
    metrics.guarded.add("chat-ep", "input", "refused")
    metrics.refused("chat-ep", 429)
    metrics.refused("", 401)
    table.endpoints["chat-ep"].by_name["a"].counters.inflight = 4
    snapshot = metrics.snapshot(
        table,
        connections=9,
        dropped={"access_log": 5},
        limited=[("chat-ep", "user calls", "shadow", 6)],
        replicas=[("chat-ep", "a", "chat-ep/a@rev#0", "ejected")],
    )
    assert value(snapshot, "servestate_ejections_total", entity="a", reason="errors") == 1
    assert value(snapshot, "servestate_mirror_total", entity="b", outcome="ok") == 2
    assert value(snapshot, "servestate_guarded_total", side="input", action="refused") == 1
    assert value(snapshot, "servestate_requests_total", endpoint="chat-ep", code="429", how="refused") == 1
    assert value(snapshot, "servestate_requests_total", endpoint="", code="401", how="refused") == 1
    assert value(snapshot, "servestate_inflight", entity="a") == 4
    assert value(snapshot, "servestate_connections") == 9
    assert value(snapshot, "servestate_log_dropped_total", log="access_log") == 5
    assert value(snapshot, "servestate_rate_limited_total", limit="user calls", mode="shadow") == 6
    assert value(snapshot, "servestate_replica_state", replica="chat-ep/a@rev#0", state="ejected") == 1
    assert value(snapshot, "servestate_config_version", endpoint="chat-ep") == 3
    assert value(snapshot, "servestate_split_assigned_total", entity="a", policy="sticky") == 0


def test_every_family_is_announced_and_no_text_is_misread() -> None:
    table = live()
    metrics = Metrics()
    metrics.mirrored.add("chat-ep", "b", 'a "quoted\\ \n outcome')
    text = expose(metrics.snapshot(table)).decode()
    for name, family in FAMILIES.items():
        assert f"# HELP {name} {family.text}\n# TYPE {name} {family.kind}\n" in text
    found = [
        dict(labels) for (name, labels) in read(metrics.snapshot(table)) if name == "servestate_mirror_total"
    ]
    assert found == [{"endpoint": "chat-ep", "entity": "b", "outcome": 'a "quoted\\ \n outcome'}]


def test_workers_are_summed_and_versions_are_not() -> None:
    snapshots = []
    for worker in (1, 2, 3):
        table = live()
        snapshots.append(counted(table, *(recorded(table, total_s=0.1 * worker) for _ in range(worker))))
    merged = merge(json.loads(json.dumps(snapshots)))
    assert value(merged, "servestate_requests_total", entity="a", code="200") == 6
    durations = "gen_ai_server_request_duration_seconds"
    assert value(merged, f"{durations}_count") == 6
    assert value(merged, f"{durations}_sum") == pytest.approx(0.1 + 2 * 0.2 + 3 * 0.3)
    assert value(merged, f"{durations}_bucket", le="0.16") == 1
    assert value(merged, "servestate_config_version", endpoint="chat-ep") == 3
    assert merge([snapshots[0]]) == snapshots[0]
    assert merge([]) == {name: [] for name in FAMILIES}


def test_what_no_table_names_is_forgotten_and_the_rest_goes_on() -> None:
    kept = registry()
    metrics = Metrics()
    first = live(routes(), routes("other", "ab"), within=kept)
    for table_endpoint, entity in (("chat-ep", "a"), ("chat-ep", "b"), ("other", "a")):
        metrics.ended(recorded(first, table_endpoint, entity, cut="lost", failed=(("b", "503"),)))
        metrics.guarded.add(table_endpoint, "input", "refused")
    metrics.refused("other", 429)
    metrics.refused("", 401)
    second = live(replace(routes(), entities=routes(entities="a").entities), within=kept)
    metrics.forget_absent(second)
    samples = read(metrics.snapshot(second))
    assert {dict(labels).get("endpoint") for _, labels in samples} == {"chat-ep", "", None}
    entities = {dict(labels).get("entity") for _, labels in samples}
    assert "b" not in entities
    assert (
        value(metrics.snapshot(second), "servestate_stream_truncated_total", entity="a", reason="lost") == 1
    )
    assert value(metrics.snapshot(second), "servestate_requests_total", entity="a", code="200") == 1
    assert value(metrics.snapshot(second), "servestate_requests_total", endpoint="", code="401") == 1


def _named(*names: str) -> tuple[EntityRoute, ...]:
    return tuple(replace(routes().entities[0], name=name) for name in names)


def test_reloads_do_not_fill_the_memory() -> None:
    kept = registry()
    metrics = Metrics()
    for number in range(200):
        table = live(
            routes(f"ep-{number}"), replace(routes(), entities=_named("a", f"b{number}")), within=kept
        )
        metrics.ended(recorded(table, f"ep-{number}", cut="lost", failed=(("b", "503"),)))
        metrics.ended(recorded(table, entity=f"b{number}", failed=(("a", "503"),)))
        metrics.forget_absent(table)
    assert sum(len(samples) for samples in metrics.snapshot(table).values()) < 100
    assert sum(len(tally.values) for tally in metrics._tallies.values()) < 10


def test_custom_models_are_told_apart() -> None:
    table = live()
    snapshot = counted(table, recorded(table, kind=CUSTOM), recorded(table))
    for operation in ("chat", "predict"):
        name = "gen_ai_server_request_duration_seconds_count"
        assert value(snapshot, name, gen_ai_operation_name=operation) == 1
