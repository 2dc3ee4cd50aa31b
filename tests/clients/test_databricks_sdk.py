"""The Databricks SDK for Python, as it comes, against the serving REST API."""

from __future__ import annotations

import json
import logging
import re
from datetime import timedelta
from typing import Any

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.errors import (
    InvalidParameterValue,
    OperationFailed,
    PermissionDenied,
    RequestLimitExceeded,
    ResourceAlreadyExists,
    ResourceConflict,
    ResourceDoesNotExist,
    TemporarilyUnavailable,
    Unauthenticated,
)
from databricks.sdk.errors.platform import DatabricksError
from databricks.sdk.service.serving import (
    AiGatewayConfig,
    AiGatewayRateLimit,
    AiGatewayRateLimitKey,
    AiGatewayRateLimitRenewalPeriod,
    AiGatewayUsageTrackingConfig,
    ChatMessage,
    ChatMessageRole,
    DataframeSplitInput,
    EmailNotifications,
    EndpointCoreConfigInput,
    EndpointStateConfigUpdate,
    EndpointStateReady,
    EndpointTag,
    ExternalModel,
    ExternalModelProvider,
    OpenAiConfig,
    PtEndpointCoreConfig,
    PtServedModel,
    RateLimit,
    RateLimitKey,
    RateLimitRenewalPeriod,
    Route,
    ServedEntityInput,
    ServedModelStateDeployment,
    ServingEndpointAccessControlRequest,
    ServingEndpointDetailed,
    ServingEndpointPermissionLevel,
    TelemetryConfig,
    TrafficConfig,
)

from tests.cli.harness import until
from tests.clients.harness import (
    BROKEN,
    CHAT,
    GATED,
    READER,
    STANDING,
    STRANGER,
    TEXT,
    TOKEN,
    TOKENS,
    UNITS,
    UNITS_STEP,
    Server,
    Upstream,
    endpoint,
    external,
    hosted,
)
from tests.clients.refusals import NOT_YET, NOWHERE, REFUSED, route

SOON = timedelta(seconds=30)
PATH = "/api/2.0/serving-endpoints"


def workspace(url: str, token: str = TOKEN, budget_s: int = 5) -> WorkspaceClient:
    """A client that repeats what may be repeated for `budget_s` seconds."""
    return WorkspaceClient(config=Config(host=url, token=token, retry_timeout_seconds=budget_s))


@pytest.fixture
def w(server: Server) -> WorkspaceClient:
    return workspace(server.url)


def config(*entities: ServedEntityInput, **shares: int) -> EndpointCoreConfigInput:
    """A config; the class wants a name, which the API ignores."""
    return EndpointCoreConfigInput(
        name="ignored", served_entities=list(entities), traffic_config=traffic(**shares) if shares else None
    )


def traffic(**shares: int) -> TrafficConfig:
    return TrafficConfig([Route(traffic_percentage=s, served_entity_name=n) for n, s in shares.items()])


def local(version: str = "1", name: str | None = None) -> ServedEntityInput:
    """A process of this machine."""
    return ServedEntityInput(name=name, entity_name=CHAT, entity_version=version, workload_size="Small")


def remote(url: str, name: str, task: str = "llm/v1/chat") -> ServedEntityInput:
    """A model that somebody else serves."""
    openai = OpenAiConfig(openai_api_base=f"{url}/v1", openai_api_key="{{secrets/demo/key}}")
    model = ExternalModel(ExternalModelProvider.OPENAI, "far-model", task, openai_config=openai)
    return ServedEntityInput(name=name, external_model=model)


def state_of(found: ServingEndpointDetailed) -> tuple[EndpointStateReady, EndpointStateConfigUpdate]:
    return found.state.ready, found.state.config_update


READY = (EndpointStateReady.READY, EndpointStateConfigUpdate.NOT_UPDATING)


def shares_of(found: ServingEndpointDetailed) -> dict[str, int]:
    """The split; both names of every route are there and agree."""
    routes = found.config.traffic_config.routes
    assert all(route.served_entity_name == route.served_model_name for route in routes)
    return {route.served_model_name: route.traffic_percentage for route in routes}


def say(w: WorkspaceClient, name: str, text: str = "hello") -> tuple[str, str]:
    """What a chat endpoint answers, and who answered."""
    answer = w.serving_endpoints.query(name, messages=[ChatMessage(text, ChatMessageRole.USER)])
    return answer.choices[0].message.content, answer.served_model_name


# How it connects.


@pytest.mark.parametrize("how", ["environment", "arguments"])
def test_construction(
    server: Server, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        if how == "environment":
            monkeypatch.setenv("DATABRICKS_HOST", server.url)
            monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
            w = WorkspaceClient()
        else:
            w = WorkspaceClient(host=f"{server.url}/", token=TOKEN)
        names = {one.name for one in w.serving_endpoints.list()}
    assert w.config.auth_type == "pat"
    assert names == {one["name"] for one in STANDING}
    assert caplog.records == []


def test_who_calls_is_asked_for_where_tokens_are_declared(guarded: Server) -> None:
    with pytest.raises(Unauthenticated):
        list(workspace(guarded.url, "nobody's-token").serving_endpoints.list())
    reader, stranger = workspace(guarded.url, READER), workspace(guarded.url, STRANGER)
    assert say(reader, "chat") == ("one: hello", "current")
    assert [one.name for one in reader.serving_endpoints.list()] == ["chat", "limited"]
    with pytest.raises(PermissionDenied):
        reader.serving_endpoints.update_config("chat", served_entities=[local("2")])
    assert list(stranger.serving_endpoints.list()) == []
    with pytest.raises(DatabricksError) as refused:
        stranger.serving_endpoints.get("chat")
    assert isinstance(refused.value, (PermissionDenied, ResourceDoesNotExist))


# The life of an endpoint.


def test_life_of_an_endpoint(server: Server, w: WorkspaceClient) -> None:
    waiting = w.serving_endpoints.create("life", config=config(local()), description="a life")
    first = waiting.response
    assert state_of(first) == (EndpointStateReady.NOT_READY, EndpointStateConfigUpdate.IN_PROGRESS)
    assert first.config is None
    assert (first.pending_config.config_version, first.pending_config.start_time > 0) == (1, True)

    made = waiting.result(timeout=SOON)
    assert state_of(made) == READY
    assert (made.config.config_version, made.pending_config) == (1, None)
    (entity,) = made.config.served_entities
    assert (entity.name, entity.entity_version) == ("chat-1", "1")
    assert entity.state.deployment is ServedModelStateDeployment.DEPLOYMENT_READY
    assert shares_of(made) == {"chat-1": 100}
    assert re.fullmatch("[0-9a-f]{32}", made.id)
    assert made.creator
    assert 0 < made.creation_timestamp <= made.last_updated_timestamp
    assert (made.description, made.task, made.tags, made.route_optimized) == (
        "a life",
        "llm/v1/chat",
        [],
        False,
    )
    assert (made.endpoint_url, made.data_plane_info) == (None, None)
    assert say(w, "life") == ("one: hello", "chat-1")

    moved = w.serving_endpoints.update_config_and_wait(
        "life", served_entities=[local("2", "new"), local("1", "old")], traffic_config=traffic(new=75, old=25)
    )
    assert state_of(moved) == READY
    assert (moved.config.config_version, moved.id) == (2, made.id)
    assert shares_of(moved) == {"new": 75, "old": 25}
    assert "life" in {one.name for one in w.serving_endpoints.list()}

    w.serving_endpoints.delete("life")
    with pytest.raises(ResourceDoesNotExist):
        w.serving_endpoints.get("life")
    with pytest.raises(ResourceDoesNotExist):
        say(w, "life")


def test_external_models_are_ready_at_once(server: Server, w: WorkspaceClient, far: Upstream) -> None:
    made = w.serving_endpoints.create("outside", config=config(remote(far.url, "far"))).response
    assert state_of(made) == READY
    assert (made.config.config_version, made.pending_config) == (1, None)
    shown = made.config.served_entities[0].external_model.openai_config
    assert shown.openai_api_key == "{{secrets/demo/key}}"
    assert say(w, "outside") == ("far: hello", "far")
    assert far.asked[-1].headers["authorization"] == "Bearer s3cret-of-the-upstream"
    assert far.asked[-1].body["model"] == "far-model"


def test_traffic_alone(server: Server, w: WorkspaceClient, far: Upstream) -> None:
    entities = config(remote(far.url, "a"), remote(far.url, "b"), a=100, b=0)
    w.serving_endpoints.create_and_wait("split", config=entities, timeout=SOON)
    moved = w.serving_endpoints.update_config_and_wait(
        "split", traffic_config=traffic(a=0, b=100), timeout=SOON
    )
    assert shares_of(moved) == {"a": 0, "b": 100}
    assert [one.name for one in moved.config.served_entities] == ["a", "b"]
    assert moved.config.config_version == 2
    assert [say(w, "split")[1] for _ in range(3)] == ["b"] * 3


def test_config_may_come_later(server: Server, w: WorkspaceClient, far: Upstream) -> None:
    bare = w.serving_endpoints.create("bare").response
    assert state_of(bare) == (EndpointStateReady.NOT_READY, EndpointStateConfigUpdate.NOT_UPDATING)
    assert (bare.config, bare.pending_config) == (None, None)
    filled = w.serving_endpoints.update_config_and_wait(
        "bare", served_entities=[remote(far.url, "far")], timeout=SOON
    )
    assert (state_of(filled), filled.config.config_version) == (READY, 1)


def test_second_update_meanwhile(server: Server, w: WorkspaceClient) -> None:
    waiting = w.serving_endpoints.create("twice", config=config(local(GATED)))
    with pytest.raises(ResourceConflict):
        w.serving_endpoints.update_config("twice", served_entities=[local("2")])
    with pytest.raises(ResourceAlreadyExists):
        w.serving_endpoints.create("twice", config=config(local()))
    with pytest.raises(ResourceConflict):
        w.serving_endpoints.patch_telemetry_config("twice")
    w.serving_endpoints.patch("twice", add_tags=[EndpointTag("team", "a")])  # this may happen meanwhile
    between = w.serving_endpoints.get("twice")
    assert between.pending_config.served_entities[0].entity_version == GATED
    assert between.state.config_update is EndpointStateConfigUpdate.IN_PROGRESS
    server.open_gate()
    made = waiting.result(timeout=SOON)
    assert (state_of(made), made.tags) == (READY, [EndpointTag("team", "a")])


def test_update_that_fails_changes_nothing(server: Server, w: WorkspaceClient) -> None:
    server.create(endpoint("fails", hosted("it", CHAT)))
    with pytest.raises(OperationFailed):
        w.serving_endpoints.update_config_and_wait(
            "fails", served_entities=[local(BROKEN, "it")], timeout=SOON
        )
    failed = w.serving_endpoints.get("fails")
    assert state_of(failed) == (EndpointStateReady.READY, EndpointStateConfigUpdate.UPDATE_FAILED)
    (pending,) = failed.pending_config.served_entities
    assert pending.state.deployment is ServedModelStateDeployment.DEPLOYMENT_FAILED
    assert "the weights are broken" in pending.state.deployment_state_message
    assert failed.config.config_version == 1
    assert say(w, "fails") == ("one: hello", "it")

    w.serving_endpoints.update_config("fails", served_entities=[local("2", "it")])
    server.settled("fails")
    mended = w.serving_endpoints.get("fails")
    assert (state_of(mended), mended.config.config_version, mended.pending_config) == (READY, 2, None)
    assert say(w, "fails") == ("two: hello", "it")


@pytest.mark.slow
def test_first_config_that_fails(server: Server, w: WorkspaceClient) -> None:
    with pytest.raises(OperationFailed):
        w.serving_endpoints.create_and_wait("stillborn", config=config(local(BROKEN)), timeout=SOON)
    failed = w.serving_endpoints.get("stillborn")
    assert state_of(failed) == (EndpointStateReady.NOT_READY, EndpointStateConfigUpdate.UPDATE_FAILED)
    assert failed.config is None
    mended = w.serving_endpoints.update_config_and_wait("stillborn", served_entities=[local()], timeout=SOON)
    assert (state_of(mended), mended.config.config_version) == (READY, 1)


def test_update_that_is_cancelled(server: Server, w: WorkspaceClient) -> None:
    server.create(endpoint("undone", hosted("it", CHAT)))
    w.serving_endpoints.update_config("undone", served_entities=[local(GATED, "it")])
    assert say(w, "undone") == ("one: hello", "it")
    w.api_client.do("POST", f"{PATH}/undone/cancel-update")
    with pytest.raises(OperationFailed):
        w.serving_endpoints.wait_get_serving_endpoint_not_updating("undone", timeout=SOON)
    back = w.serving_endpoints.get("undone")
    assert state_of(back) == (EndpointStateReady.READY, EndpointStateConfigUpdate.UPDATE_CANCELED)
    assert (back.config.config_version, back.pending_config) == (1, None)
    assert say(w, "undone") == ("one: hello", "it")


def test_deletion_ends_an_update(server: Server, w: WorkspaceClient, far: Upstream) -> None:
    w.serving_endpoints.create("brief", config=config(local(GATED)))
    w.serving_endpoints.delete("brief")
    with pytest.raises(ResourceDoesNotExist):
        w.serving_endpoints.get("brief")
    again = w.serving_endpoints.create("brief", config=config(remote(far.url, "far"))).response
    assert state_of(again) == READY  # the name is free at once
    until(lambda: "brief/chat-8" not in server.site.engines(), "its engine is gone")


# What belongs to an endpoint beside its config.


@pytest.fixture
def outside(w: WorkspaceClient, far: Upstream) -> ServingEndpointDetailed:
    """An endpoint without processes, called `outside`."""
    return w.serving_endpoints.create("outside", config=config(remote(far.url, "far"))).response


def test_tags(w: WorkspaceClient, outside: ServingEndpointDetailed) -> None:
    added = w.serving_endpoints.patch("outside", add_tags=[EndpointTag("a", "1"), EndpointTag("b")])
    assert {tag.key: tag.value or "" for tag in added.tags} == {"a": "1", "b": ""}
    left = w.serving_endpoints.patch("outside", add_tags=[EndpointTag("c", "3")], delete_tags=["a"])
    assert {tag.key for tag in left.tags} == {"b", "c"}
    found = w.serving_endpoints.get("outside")
    assert {tag.key for tag in found.tags} == {"b", "c"}
    assert found.config.config_version == 1
    assert found.last_updated_timestamp >= outside.last_updated_timestamp


def test_old_rate_limits(w: WorkspaceClient, outside: ServingEndpointDetailed) -> None:
    limit = RateLimit(100, RateLimitRenewalPeriod.MINUTE, RateLimitKey.USER)
    assert w.serving_endpoints.put("outside", rate_limits=[limit]).rate_limits == [limit]
    found = w.serving_endpoints.get("outside")
    assert (found.ai_gateway, found.config.config_version) == (None, 1)
    assert not w.serving_endpoints.put("outside", rate_limits=[]).rate_limits


def test_gateway_is_replaced_whole(w: WorkspaceClient, outside: ServingEndpointDetailed) -> None:
    of_user = _gateway_limit(50, AiGatewayRateLimitKey.USER)
    usage = AiGatewayUsageTrackingConfig(enabled=True)
    stored = w.serving_endpoints.put_ai_gateway("outside", rate_limits=[of_user], usage_tracking_config=usage)
    assert (stored.rate_limits, stored.usage_tracking_config) == ([of_user], usage)
    assert w.serving_endpoints.get("outside").ai_gateway == AiGatewayConfig(
        rate_limits=[of_user], usage_tracking_config=usage
    )
    of_endpoint = _gateway_limit(90, AiGatewayRateLimitKey.ENDPOINT)
    replaced = w.serving_endpoints.put_ai_gateway("outside", rate_limits=[of_endpoint])
    assert (replaced.rate_limits, replaced.usage_tracking_config) == ([of_endpoint], None)
    assert w.serving_endpoints.put_ai_gateway("outside").as_dict() == {}
    found = w.serving_endpoints.get("outside")
    assert not (found.ai_gateway and found.ai_gateway.as_dict())
    assert found.config.config_version == 1


def _gateway_limit(calls: int, key: AiGatewayRateLimitKey) -> AiGatewayRateLimit:
    return AiGatewayRateLimit(AiGatewayRateLimitRenewalPeriod.MINUTE, calls=calls, key=key)


def test_notifications(w: WorkspaceClient, outside: ServingEndpointDetailed) -> None:
    wanted = EmailNotifications(on_update_failure=["ops@example.com"])
    answer = w.serving_endpoints.update_notifications("outside", email_notifications=wanted)
    assert (answer.name, answer.email_notifications.on_update_failure) == ("outside", ["ops@example.com"])
    found = w.serving_endpoints.get("outside").email_notifications
    assert found.on_update_failure == ["ops@example.com"]


def test_telemetry(w: WorkspaceClient, outside: ServingEndpointDetailed) -> None:
    with pytest.raises(InvalidParameterValue):
        w.serving_endpoints.patch_telemetry_config("outside", telemetry_config=TelemetryConfig())


def test_permissions_by_id(w: WorkspaceClient, outside: ServingEndpointDetailed) -> None:
    levels = w.serving_endpoints.get_permission_levels(outside.id).permission_levels
    assert {one.permission_level.value for one in levels} == {"CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"}

    query, view = ServingEndpointPermissionLevel.CAN_QUERY, ServingEndpointPermissionLevel.CAN_VIEW
    ada = ServingEndpointAccessControlRequest(user_name="ada@example.com", permission_level=query)
    team = ServingEndpointAccessControlRequest(group_name="team", permission_level=view)
    done = w.serving_endpoints.set_permissions(outside.id, access_control_list=[ada])
    assert done.object_type == "serving-endpoint"
    assert done.object_id == f"/serving-endpoints/{outside.id}"
    assert _granted(w, outside.id) == {"ada@example.com": ["CAN_QUERY"]}
    w.serving_endpoints.update_permissions(outside.id, access_control_list=[team])
    assert _granted(w, outside.id) == {"ada@example.com": ["CAN_QUERY"], "team": ["CAN_VIEW"]}
    w.serving_endpoints.set_permissions(outside.id, access_control_list=[team])
    assert _granted(w, outside.id) == {"team": ["CAN_VIEW"]}
    w.serving_endpoints.set_permissions(outside.id)
    assert _granted(w, outside.id) == {}
    with pytest.raises(ResourceDoesNotExist):
        w.serving_endpoints.get_permissions("0" * 32)


def _granted(w: WorkspaceClient, endpoint_id: str) -> dict[str, list[str]]:
    """Principal -> levels that are granted directly."""
    found = w.serving_endpoints.get_permissions(endpoint_id).access_control_list or []
    direct = {
        one.user_name or one.group_name or one.service_principal_name: [
            p.permission_level.value for p in one.all_permissions if not p.inherited
        ]
        for one in found
    }
    return {principal: levels for principal, levels in direct.items() if levels}


# Queries.


def test_query_chat(w: WorkspaceClient) -> None:
    answer = w.serving_endpoints.query(
        "chat",
        messages=[
            ChatMessage("be brief", ChatMessageRole.SYSTEM),
            ChatMessage("hello", ChatMessageRole.USER),
        ],
        max_tokens=5,
        temperature=0.5,
        n=1,
        stop=["."],
        client_request_id="mine",
        usage_context={"team": "a"},
    )
    assert answer.choices[0].message.content == "one: hello"
    assert (answer.served_model_name, answer.object.value) == ("current", "chat.completion")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 2)


def test_query_text_and_embeddings(w: WorkspaceClient) -> None:
    text = w.serving_endpoints.query("text", prompt="once upon", max_tokens=3)
    assert (text.choices[0].text, text.served_model_name) == ("one: once upon", "current")
    vectors = w.serving_endpoints.query("embeddings", input=["four", "sixsix"])
    assert [one.embedding for one in vectors.data] == [[4.0, 0.5, -1.0], [6.0, 0.5, -1.0]]
    assert vectors.served_model_name == "current"


@pytest.mark.parametrize(
    "rows",
    [
        {"dataframe_split": DataframeSplitInput(columns=["a", "b"], data=[[1, 2], [3, 4]], index=[0, 1])},
        {"dataframe_records": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]},
        {"instances": [[1, 2], [3, 4]]},
        {"inputs": {"a": [1, 3], "b": [2, 4]}},
    ],
    ids=lambda rows: next(iter(rows)),
)
def test_query_custom_model(w: WorkspaceClient, rows: dict[str, Any]) -> None:
    answer = w.serving_endpoints.query("table", **rows)
    assert (answer.predictions, answer.served_model_name) == ([3, 7], "current")


def test_query_one_entity_past_the_split(w: WorkspaceClient) -> None:
    answer = w.api_client.do(
        "POST",
        "/serving-endpoints/chat/served-models/idle/invocations",
        body={"messages": [{"role": "user", "content": "hello"}]},
        response_headers=["served-model-name"],
    )
    assert answer["choices"][0]["message"]["content"] == "two: hello"
    assert answer["served-model-name"] == "idle"


def test_data_plane_client_says_what_is_missing(w: WorkspaceClient) -> None:
    with pytest.raises(Exception, match="does not support direct Data Plane access"):  # it is a bare one
        w.serving_endpoints_data_plane.query("chat", prompt="hello")


# Logs, metrics, the description of an endpoint.


def test_logs(w: WorkspaceClient) -> None:
    assert "engine one starts" in w.serving_endpoints.logs("chat", "current").logs
    assert "engine two starts" in w.serving_endpoints.logs("chat", "idle").logs
    assert isinstance(w.serving_endpoints.build_logs("chat", "current").logs, str)
    with pytest.raises(ResourceDoesNotExist):
        w.serving_endpoints.logs("chat", "nobody")
    with pytest.raises(ResourceDoesNotExist):
        w.serving_endpoints.build_logs("chat", "nobody")


def test_metrics(w: WorkspaceClient) -> None:
    say(w, "chat")
    text = w.serving_endpoints.export_metrics("chat").contents.read().decode()
    assert "request_count_total" in text
    with pytest.raises(ResourceDoesNotExist):
        w.serving_endpoints.export_metrics("nobody")


def test_open_api(w: WorkspaceClient) -> None:
    document = json.loads(w.serving_endpoints.get_open_api("chat").contents.read())
    assert document["openapi"].startswith("3.")
    assert any("/chat/invocations" in path for path in document["paths"])


# Provisioned throughput.


def test_model_units(server: Server, w: WorkspaceClient) -> None:
    model = PtServedModel(UNITS, UNITS_STEP, entity_version="1", name="it", burst_scaling_enabled=False)
    made = w.serving_endpoints.create_provisioned_throughput_endpoint_and_wait(
        "units", config=PtEndpointCoreConfig([model]), tags=[EndpointTag("a", "b")], timeout=SOON
    )
    assert state_of(made) == READY
    assert made.config.served_entities[0].provisioned_model_units == UNITS_STEP
    assert shares_of(made) == {"it": 100}
    assert say(w, "units") == ("one: hello", "it")
    more = PtServedModel(UNITS, 3 * UNITS_STEP, entity_version="1", name="it")
    grown = w.serving_endpoints.update_provisioned_throughput_endpoint_config_and_wait(
        "units", config=PtEndpointCoreConfig([more], traffic(it=100)), timeout=SOON
    )
    assert grown.config.served_entities[0].provisioned_model_units == 3 * UNITS_STEP
    assert grown.config.config_version == 2
    shown = w.api_client.do("GET", f"{PATH}/units")["config"]["served_entities"][0]
    assert "burst_scaling_enabled" not in shown
    with pytest.raises(InvalidParameterValue):
        w.serving_endpoints.update_provisioned_throughput_endpoint_config(
            "units", config=PtEndpointCoreConfig([PtServedModel(UNITS, UNITS_STEP + 1, entity_version="1")])
        )


def test_optimization_info(w: WorkspaceClient) -> None:
    def info(model: str, version: str = "1") -> dict[str, Any]:
        return dict(w.api_client.do("GET", f"{PATH}/get-model-optimization-info/{model}/{version}"))

    assert info(TOKENS) == {"optimizable": True, "model_type": "llama", "throughput_chunk_size": 100}
    assert info(UNITS) == {"optimizable": True, "model_type": "llama", "model_unit_chunk_size": 50}
    assert info(TEXT) == {"optimizable": False}
    for unknown in ((TOKENS, "77"), ("no.such.model", "1")):
        with pytest.raises(ResourceDoesNotExist):
            info(*unknown)


# What is refused.


@pytest.mark.parametrize("case", REFUSED)
def test_refused(server: Server, w: WorkspaceClient, case: str) -> None:
    before = server.names()
    with pytest.raises(InvalidParameterValue):
        w.api_client.do("POST", PATH, body=REFUSED[case])
    assert server.names() == before


@pytest.mark.parametrize("case", NOT_YET)
def test_not_supported_yet(server: Server, w: WorkspaceClient, case: str) -> None:
    before = server.names()
    with pytest.raises(InvalidParameterValue, match="not supported yet"):
        w.api_client.do("POST", PATH, body=NOT_YET[case])
    assert server.names() == before


@pytest.mark.parametrize(
    ("units", "more"),
    [(UNITS_STEP + 1, {}), (0, {}), (-UNITS_STEP, {}), (UNITS_STEP, {"max_provisioned_throughput": 100})],
)
def test_refused_model_units(server: Server, w: WorkspaceClient, units: int, more: dict[str, int]) -> None:
    entity = {"entity_name": UNITS, "entity_version": "1", "provisioned_model_units": units, **more}
    with pytest.raises(InvalidParameterValue):
        w.api_client.do("POST", f"{PATH}/pt", body=endpoint("refused", entity))
    assert "refused" not in server.names()


@pytest.mark.parametrize(
    ("before", "update"),
    [
        ("outside", {"served_entities": [hosted("a", CHAT)]}),
        ("chat", {"served_entities": [external("a", NOWHERE)]}),
        ("chat", {}),
        ("chat", {"traffic_config": {"routes": [route("current", 100)]}}),
        ("chat", {"traffic_config": {"routes": [route("current", 60), route("idle", 60)]}}),
        ("chat", {"served_entities": [hosted("a", CHAT), hosted("b", CHAT)]}),
        ("chat", {"served_entities": []}),
    ],
    ids=["R5 hosted", "R5 external", "empty", "R10 not all", "R10 sum", "R11", "R7"],
)
def test_refused_update(
    server: Server,
    w: WorkspaceClient,
    outside: ServingEndpointDetailed,
    before: str,
    update: dict[str, Any],
) -> None:
    was = server.get(before)
    with pytest.raises(InvalidParameterValue):
        w.api_client.do("PUT", f"{PATH}/{before}/config", body=update)
    assert server.get(before) == was


@pytest.mark.parametrize(
    "query",
    [
        {"messages": [{"role": "user", "content": "hi"}], "n": 6},
        {"messages": [{"role": "user", "content": "hi"}], "n": 0},
        {"messages": [{"role": "user", "content": "hi"}], "temperature": 2.5},
        {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"},
        {"prompt": "of another task"},
        {"question": "hi"},
    ],
    ids=["R25 n", "R25 no n", "R25 temperature", "two keys", "task", "no key"],
)
def test_refused_query(w: WorkspaceClient, query: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterValue):
        w.api_client.do("POST", "/serving-endpoints/chat/invocations", body=query)


def test_what_is_not_there(w: WorkspaceClient) -> None:
    api = w.serving_endpoints
    for call in (
        lambda: api.get("nobody"),
        lambda: api.delete("nobody"),
        lambda: api.update_config("nobody", served_entities=[local()]),
        lambda: api.patch("nobody", add_tags=[EndpointTag("a")]),
        lambda: api.put("nobody", rate_limits=[]),
        lambda: api.put_ai_gateway("nobody"),
        lambda: api.update_notifications("nobody"),
        lambda: say(w, "nobody"),
        lambda: w.api_client.do("POST", f"{PATH}/nobody/cancel-update"),
    ):
        with pytest.raises(ResourceDoesNotExist):
            call()


# Limits and capacity of others.


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        pytest.param(429, RequestLimitExceeded, id="429"),
        pytest.param(503, TemporarilyUnavailable, id="503", marks=pytest.mark.slow),
    ],
)
def test_no_capacity(
    server: Server, outside: ServingEndpointDetailed, far: Upstream, status: int, cause: type[Exception]
) -> None:
    hasty = workspace(server.url, budget_s=1)
    far.statuses.extend([status] * 10)
    with pytest.raises(TimeoutError) as ended:
        say(hasty, "outside")
    assert isinstance(ended.value.__cause__, cause)
    far.statuses.clear()
    far.statuses.append(status)
    assert say(workspace(server.url), "outside") == ("far: hello", "far")  # repeated, within the budget
