"""Bundles: several files, variables, targets, the site block, and the places of what was loaded."""

import pickle
from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from servestate.planner.diagnostics import InvalidInput, Where
from servestate.planner.spec.bundle import Desired, DesiredEndpoint, Document, load
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.normal import normal_form
from servestate.planner.spec.site import WORKLOAD_TYPES, Site

ONE = """\
resources:
  model_serving_endpoints:
    chat:
      name: chat
      config:
        served_entities:
          - {name: current, entity_name: m, entity_version: "1"}
"""


def bundle(*texts: str, target: str | None = None, **variables: str) -> Desired:
    documents = [Document(f"{number}.yaml", text) for number, text in enumerate(texts)]
    return load(documents, target=target, variables=variables)


NO_ENVIRONMENT: Mapping[str, str] = {}


def described(
    yaml: str, target: str | None = None, environ: Mapping[str, str] = NO_ENVIRONMENT, **given: str
) -> str:
    """The description of the one endpoint of `yaml`."""
    (endpoint,) = load([Document("b.yaml", yaml)], target=target, variables=given, environ=environ).endpoints
    return endpoint.spec.description


def test_a_bundle_alone_is_enough() -> None:
    desired = bundle(ONE)
    assert desired.bundle == "default"
    assert desired.warnings == ()
    assert desired.site == Site()
    assert desired.site.state == "sqlite:///.servestate/state.db"
    assert (desired.site.router.host, desired.site.router.port) == ("127.0.0.1", 8080)
    assert (desired.site.management.host, desired.site.management.port) == ("127.0.0.1", 8081)
    assert desired.site.secrets.backend == "env"
    assert desired.site.providers.process.port_range == range(21000, 29000)
    assert {name: desired.site.workload_types[name].provider for name in WORKLOAD_TYPES} == dict.fromkeys(
        WORKLOAD_TYPES, "process"
    )


def test_endpoints_are_sorted_by_name_and_know_their_place() -> None:
    second = ONE.replace("chat", "a-chat")
    desired = bundle(ONE, second)
    assert [(e.spec.name, str(e.where)) for e in desired.endpoints] == [
        ("a-chat", "1.yaml:3:5"),
        ("chat", "0.yaml:3:5"),
    ]
    assert desired.endpoints[0].where.key == "resources.model_serving_endpoints.a-chat"


def test_places_of_fields_of_the_loaded_model() -> None:
    desired = bundle(ONE)
    name = ("config", "served_entities", 0, "entity_name")
    key = "resources.model_serving_endpoints.chat.config.served_entities[0].entity_name"
    assert desired.where("chat", *name) == Where("0.yaml", 7, 42, key)
    assert desired.where("chat", "config", "served_entities", "current", "entity_version").column == 61
    assert str(desired.where("chat", "config", "served_entities", 0)) == "0.yaml:7:13"
    assert str(desired.where("chat", "config", "traffic_config", "routes")) == "0.yaml:5:7"
    assert str(desired.where("chat")) == "0.yaml:3:5"
    with pytest.raises(KeyError):
        desired.where("nobody")


def test_places_in_old_spelling_in_other_files_and_behind_variables() -> None:
    old = ONE.replace("served_entities", "served_models").replace(
        "entity_name: m", 'model_name: "${var.model}"'
    )
    old = old.replace('entity_version: "1"', "model_version: 1, scale_to_zero_enabled: false")
    desired = bundle("variables: {model: {default: m}}", old)
    place = desired.where("chat", "config", "served_entities", 0, "entity_name")
    assert (str(place), place.key.rpartition("config.")[2]) == ("1.yaml:7:41", "served_models[0].model_name")


def test_a_desired_made_by_hand_knows_the_place_of_the_block() -> None:
    spec = Endpoint.model_validate({"name": "x"})
    place = Where("f.yaml", 1, 2)
    desired = Desired("b", Site(), (DesiredEndpoint("k", spec, place),), ())
    assert desired.where("x", "config") == place


def test_models_are_frozen_and_leave_a_process() -> None:
    spec = bundle(ONE).endpoints[0].spec
    with pytest.raises(ValidationError):
        spec.name = "other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(spec)) == spec


VARIABLES = """\
bundle: {name: shop}
variables:
  text: {default: plain, description: any}
  inner: {default: "<${var.text}>"}
  size: {default: Small}
  empty:
resources:
  model_serving_endpoints:
    a: {name: a, description: "TEXT", config: {served_entities: [{name: e, entity_name: m}]}}
targets:
  dev: {default: true}
  prod: {variables: {text: productive, inner: {default: "of ${bundle.target}"}}}
"""


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("${var.text}", None, "plain"),
        ("${variables.text.value}", None, "plain"),
        ("a ${var.text} and ${var.inner}", None, "a plain and <plain>"),
        ("${var.text}", "prod", "productive"),
        ("${var.inner}", "prod", "of prod"),
        ("${bundle.name} in ${bundle.target}", None, "shop in dev"),
        ("${resources.model_serving_endpoints.a.name}", None, "a"),
        ("$HOME ${HOME} $${x} {text}", None, "$HOME ${HOME} $${x} {text}"),
    ],
)
def test_references(text: str, target: str | None, expected: str) -> None:
    assert described(VARIABLES.replace("TEXT", text), target) == expected


def test_precedence_of_variables() -> None:
    text = VARIABLES.replace("TEXT", "${var.text}")
    environ = {"BUNDLE_VAR_text": "environment", "BUNDLE_VAR_other": "x"}
    assert described(text, "prod") == "productive"
    assert described(text, "prod", environ) == "environment"
    assert described(text, "prod", environ, text="by hand") == "by hand"


def test_a_whole_reference_keeps_the_type_and_text_is_accepted_from_outside() -> None:
    text = """\
variables: {zero: {default: false}, share: {default: 100}, routes: {default: [{served_entity_name: e, traffic_percentage: "${var.share}"}]}}
resources:
  model_serving_endpoints:
    a:
      name: a
      config:
        served_entities: [{name: e, entity_name: m, entity_version: 1, scale_to_zero_enabled: "${var.zero}"}]
        traffic_config: {routes: "${var.routes}"}
"""  # noqa: E501
    assert bundle(text).endpoints[0].spec.weights == {"e": 100}
    (endpoint,) = bundle(text, zero="true", share="100").endpoints
    assert endpoint.spec.weights == {"e": 100}
    assert endpoint.spec.entities[0].scale_to_zero_enabled is True


def test_a_variable_without_a_value_names_both_ways_to_set_it() -> None:
    with pytest.raises(InvalidInput) as caught:
        described(VARIABLES.replace("TEXT", "${var.empty}"))
    (finding,) = caught.value.diagnostics
    assert "--var empty=" in finding.fix
    assert "BUNDLE_VAR_empty=" in finding.fix


def test_a_variable_that_nobody_uses_needs_no_value() -> None:
    assert described(VARIABLES.replace("TEXT", "x")) == "x"


TARGETS = """\
resources:
  model_serving_endpoints:
    chat:
      name: chat
      description: base
      tags: [{key: team, value: a}, {key: cost, value: b}]
      email_notifications: {on_update_failure: [a@example.com]}
      config:
        served_entities:
          - {name: current, entity_name: m, entity_version: "1", environment_vars: {A: "1", B: "2"}}
        traffic_config: {routes: [{served_model_name: current, traffic_percentage: 100}]}
servestate: {router: {listen: "127.0.0.1:1000"}}
presets: {name_prefix: "all_"}
targets:
  dev: {default: true, mode: development, presets: {name_prefix: "[dev ann] "}}
  prod:
    mode: production
    servestate: {router: {listen: "127.0.0.1:2000"}}
    resources:
      model_serving_endpoints:
        chat:
          description: productive
          tags: [{key: cost, value: c}, {key: env, value: prod}]
          email_notifications: {on_update_failure: [b@example.com]}
          config:
            served_entities:
              - {name: current, environment_vars: {B: "3"}}
              - {name: next, entity_name: m, entity_version: "2"}
            traffic_config:
              routes:
                - {served_entity_name: current, traffic_percentage: 80}
                - {served_entity_name: next, traffic_percentage: 20}
        extra: {name: extra, config: {served_entities: [{name: e, entity_name: m, entity_version: "1"}]}}
"""


def test_a_target_merges_by_key_and_by_name() -> None:
    desired = bundle(TARGETS, target="prod")
    chat, extra = desired.endpoints
    assert (chat.spec.name, extra.spec.name) == ("all_chat", "all_extra")
    form = normal_form(chat.spec)
    assert form["description"] == "productive"
    assert form["tags"] == {"team": "a", "cost": "c", "env": "prod"}
    assert form["email_notifications"] == {"on_update_failure": ["a@example.com", "b@example.com"]}
    assert form["config"]["routes"] == {"current": 80, "next": 20}
    assert form["config"]["served_entities"][0]["environment_vars"] == {"A": "1", "B": "3"}
    assert desired.site.router.port == 2000


def test_the_default_target_and_its_prefix() -> None:
    desired = bundle(TARGETS)
    assert [e.spec.name for e in desired.endpoints] == ["dev_ann_chat"]
    assert desired.site.router.port == 1000


def test_the_only_target_needs_no_default() -> None:
    assert (
        described(VARIABLES.replace("  prod:", "#").replace("default: true", "").replace("TEXT", "x")) == "x"
    )


def test_files_add_to_each_other() -> None:
    desired = bundle(
        "servestate: {models: {m: {versions: {1: {engine: llamacpp, source: 'file://a'}}}}}",
        "servestate: {models: {n: {versions: {1: {engine: llamacpp, source: 'file://b'}}}}}",
        ONE,
        "variables: {a: {default: 1}}",
        "",
    )
    assert sorted(desired.site.models) == ["m", "n"]


def test_other_resources_are_ignored_with_a_warning() -> None:
    desired = bundle(ONE + "  jobs: {nightly: {name: x, unknown: [1]}}\n  pipelines: {}\n")
    assert [(w.code, str(w.where)) for w in desired.warnings] == [("SS171", "0.yaml:8:3")]
    assert "jobs, pipelines" in desired.warnings[0].what


def test_keys_of_databricks_bundles_are_left_alone() -> None:
    text = (
        "workspace: {host: h}\nartifacts: {}\nrun_as: {user_name: a}\nsync: {paths: []}\ninclude: [x.yml]\n"
    )
    assert bundle(ONE + text).warnings == ()


def test_a_null_is_as_good_as_nothing() -> None:
    text = ONE + "      tags:\n      description: ~\n      ai_gateway: {rate_limits: , guardrails: null}\n"
    assert normal_form(bundle(text).endpoints[0].spec) == normal_form(bundle(ONE).endpoints[0].spec)


def test_durations_and_site_values() -> None:
    text = """\
servestate:
  workload_types: {GPU_SMALL: {provider: docker, gpus: "1"}}
  providers: {docker: {url: "unix:///var/run/docker.sock"}}
  models:
    m: {versions: {2: {engine: command, argv: [serve, "--port={port}"], ready_timeout_s: 5m, env: {A: b}}}}
  overrides:
    chat: {drain_timeout_s: "90s", stop_grace_s: 1.5}
    chat/current: {args: ["-c", "4096"], strategy: recreate}
"""
    desired = bundle(text, ONE)
    site = desired.site
    assert site.models["m"].versions["2"].ready_timeout_s == 300.0
    assert (site.overrides["chat"].drain_timeout_s, site.overrides["chat"].stop_grace_s) == (90.0, 1.5)
    assert site.overrides["chat/current"].strategy == "recreate"
    assert site.workload_types["GPU_SMALL"].gpus == 1
    assert site.workload_types["CPU"].provider == "process"
    assert desired.warnings == ()


def test_an_override_of_nobody_is_a_warning_with_a_suggestion() -> None:
    (warning,) = bundle(ONE, "servestate: {overrides: {chat/curent: {}}}").warnings
    assert (warning.code, str(warning.where)) == ("SS186", "1.yaml:1:26")
    assert 'did you mean "chat/current"?' in warning.fix


def test_an_endpoint_without_a_config_is_warned_of() -> None:
    (warning,) = bundle("resources: {model_serving_endpoints: {a: {name: a}}}").warnings
    assert warning.code == "SS146"


def test_a_secret_looking_variable_in_plain_text_is_warned_of_and_not_shown() -> None:
    text = ONE.replace('version: "1"', 'version: "1", environment_vars: {HF_TOKEN: CANARY, MAX_TOKENS: "5"}')
    (warning,) = bundle(text).warnings
    assert warning.code == "SS147"
    assert "CANARY" not in str(warning)


def test_what_has_no_effect_is_said() -> None:
    text = ONE + "      route_optimized: true\n"
    text = text.replace('version: "1"', 'version: "1", instance_profile_arn: "arn:x"')
    assert [w.code for w in bundle(text).warnings] == ["SS143", "SS145"]


def test_the_collector_is_left_as_it_was() -> None:
    import gc

    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            bundle(ONE)
            assert gc.isenabled() is enabled
        finally:
            gc.enable()


def test_a_value_from_outside_cannot_bring_control_characters() -> None:
    with pytest.raises(InvalidInput) as caught:
        described(VARIABLES.replace("TEXT", "${var.text}"), None, {"BUNDLE_VAR_text": "\x1b[31mCANARY"})
    (finding,) = caught.value.diagnostics
    assert finding.code == "SS175"
    assert "U+001B" in finding.what
    assert "CANARY" not in str(finding)


LIMITED = """
resources:
  model_serving_endpoints:
    chat:
      name: chat
      config: {served_entities: [{name: e, entity_name: m, entity_version: "1"}]}
      ai_gateway: {rate_limits: [{renewal_period: minute, key: user, principal: ann, calls: 1}]}
"""
TOKEN = f"servestate: {{access: {{tokens: [{{user_name: bob, sha256: '{'0' * 64}'}}]}}}}"


def test_a_limit_for_somebody_is_warned_of_where_no_tokens_tell_who_calls() -> None:
    (warning,) = bundle(LIMITED).warnings
    assert (warning.code, str(warning.where)) == ("SS149", "0.yaml:7:81")
    assert bundle(LIMITED, TOKEN).warnings == ()
