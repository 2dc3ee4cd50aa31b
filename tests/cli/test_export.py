"""`servestate export` and `import`: what is applied becomes YAML that plans empty, and changes its owner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.owners import API_OWNER
from servestate.planner.revision import canonical_json
from servestate.planner.spec.bundle import Document, load
from servestate.planner.spec.normal import normal_form
from servestate.planner.spec.request import load_request
from servestate.planner.spec.site import Site as SiteBlock
from servestate.planner.stamp import Stamp
from servestate.planner.state import EndpointRecord, History, Published, Target
from servestate.runtime.export import exported, quoted
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.workspace import is_gone, owner_of_this_process
from tests.cli.harness import ONE, SPLIT, Site
from tests.cli.snapshots import check

NASTY = (
    *(
        "on",
        "No",
        "y",
        "null",
        "~",
        "true",
        "1",
        "1.0",
        "1e3",
        "0x1f",
        "0o17",
        "012",
        "1_000",
        "1:30",
        ".inf",
    ),
    *(
        "2026-01-01",
        "- a",
        "# no comment",
        "a: b",
        "a #b",
        "'",
        '"',
        "\\",
        "{a}",
        "[",
        "*x",
        "&x",
        "!x",
        "%x",
    ),
    *(
        "two\nlines",
        "tab\there",
        " lead",
        "trail ",
        "",
        "${HOME}",
        "$",
        "{{x}}",
        "é",
        "日本",
        "x" * 300,
        "=",
        "<<",
    ),
)
TEXT = st.sampled_from(NASTY) | st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=20
)
NAMES = st.sampled_from(["current", "challenger", "canary", "old", "7b", "e1", "on", "1e3"])


@st.composite
def entities(draw: st.DrawFn, name: str, external: bool) -> dict[str, Any]:
    if external:
        config: dict[str, Any] = {"custom_provider_url": "https://models.example/v1"}
        if draw(st.booleans()):
            config["bearer_token_auth"] = {"token": "{{secrets/scope/key}}"}
        model = {"provider": "custom", "name": draw(TEXT.filter(bool)), "task": "llm/v1/chat"}
        return {"name": name, "external_model": {**model, "custom_provider_config": config}}
    return {
        "name": name,
        "entity_name": draw(st.sampled_from(["a.b.c", "demo.echo"])),
        "entity_version": draw(st.sampled_from(["1", "01", "1e3", "on", "2026-01-01"])),
        "workload_size": draw(st.sampled_from(["Small", "Large"])),
        "environment_vars": draw(st.dictionaries(st.sampled_from(["A", "Y", "N"]), TEXT, max_size=2)),
    }


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    """What somebody may have asked the API for."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    external = draw(st.booleans())
    block: dict[str, Any] = {"name": draw(st.sampled_from(["e", "solo-1", "7b", "on"]))}
    if draw(st.integers(0, 5)):
        cut = draw(st.integers(0, 100))
        shares = [cut, 100 - cut, 0, 0] if len(names) > 1 else [100]
        routes = [
            {"served_model_name": name, "traffic_percentage": share}
            for name, share in zip(names, shares, strict=False)
        ]
        served = [draw(entities(name, external)) for name in names]
        block["config"] = {"served_entities": served, "traffic_config": {"routes": routes}}
    optional = {
        "description": TEXT,
        "tags": st.dictionaries(st.sampled_from(["team", "on", "1"]), TEXT, max_size=3).map(
            lambda tags: [{"key": key, "value": value} for key, value in tags.items()]
        ),
        "permissions": st.just([{"level": "CAN_MANAGE", "user_name": "ana@example.com"}]),
        "budget_policy_id": st.just("7"),
        "email_notifications": st.just({"on_update_failure": ["a@example.com"]}),
        "ai_gateway": st.just(
            {
                "usage_tracking_config": {"enabled": True},
                "rate_limits": [{"calls": 5, "renewal_period": "minute", "key": "endpoint"}],
            }
        ),
    }
    for key, values in optional.items():
        if draw(st.booleans()):
            block[key] = draw(values)
    return block


def record(block: dict[str, Any], key: str = "", owner: str = API_OWNER) -> EndpointRecord:
    """As the API has it; the entities in the order of the request."""
    (found,) = load_request(block, SiteBlock(), owner, key or str(block["name"])).endpoints
    targets = tuple(Target(entity.name, 0, ()) for entity in found.spec.entities)
    form = canonical_json(normal_form(found.spec))
    return EndpointRecord(found.spec.name, found.key, owner, form, 1, targets)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(blocks())
def test_what_is_exported_means_what_was_recorded(block: dict[str, Any]) -> None:
    try:
        one = record(block)
    except InvalidInput:  # no API would have taken it
        return
    (found,) = load([Document("e.yaml", exported([one]))]).endpoints
    assert found.key == one.key
    assert canonical_json(normal_form(found.spec)) == one.block
    assert [entity.name for entity in found.spec.entities] == [target.entity for target in one.targets]


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_text_stays_text_for_every_reader(text: str) -> None:
    assert yaml.safe_load(quoted(text)) == text


def test_how_it_looks() -> None:
    made = Stamp("ana@example.com", 1_700_000_000.0, "api")
    block = {
        "name": "chat",
        "tags": [{"key": "on", "value": "1e3"}],
        "config": {
            "served_entities": [
                {"name": "b", "entity_name": "demo.echo", "entity_version": "1"},
                {
                    "name": "a",
                    "entity_name": "demo.echo",
                    "entity_version": "2",
                    "environment_vars": {"KEY": "{{secrets/servestate-api/0123}}"},
                },
            ],
            "traffic_config": {
                "routes": [
                    {"served_model_name": "b", "traffic_percentage": 90},
                    {"served_model_name": "a", "traffic_percentage": 10},
                ]
            },
        },
    }
    one = record(block)
    changed = EndpointRecord(
        one.name,
        one.key,
        one.owner,
        one.block,
        1,
        one.targets,
        history=History(3, made, Stamp("bob\nx: y", made.at + 60, "apply")),
    )
    assert exported([changed]) == (Path(__file__).parent / "snapshots" / "export" / "chat.yaml").read_text()


@pytest.mark.parametrize("salt", ["autumn", "x\u2028y: z", 'a" # b', "\x85"])
def test_the_policy_of_the_site_is_a_comment_that_means_the_same(salt: str) -> None:
    policy = {"split": "sticky", "sticky": {"from": "caller", "salt": salt}}
    one = replace(record({"name": "chat"}), traffic=canonical_json(policy))
    (line,) = [line for line in exported([one]).splitlines() if "servestate.traffic" in line]
    assert yaml.safe_load(line.rpartition(" has ")[2]) == {"chat": policy}
    assert load([Document("e.yaml", exported([one]))]).site == SiteBlock()


def test_keys_of_several_bundles_do_not_collide() -> None:
    found = [record({"name": name}, key="k", owner=name) for name in ("one", "two", "three")]
    keys = [endpoint.key for endpoint in load([Document("e.yaml", exported(found))]).endpoints]
    assert sorted(keys) == ["k", "k_2", "k_3"]


@pytest.mark.parametrize("text", ["${var.x}", "a ${bundle.target} b", "${ var.x", "${a.b}"])
def test_text_that_a_bundle_would_read_as_a_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match='SS626 "e" holds text'):
        exported([record({"name": "e", "description": text})])


def test_in_its_own_bundle_it_plans_empty(site: Site) -> None:
    site.configure(SPLIT, tags=[{"key": "team", "value": "no"}])
    site.apply()
    written = site.run("export", "--all").ok().out
    site.run("export", "multi-model", "-o", "one.yml").ok()
    (bundle, one) = (site.folder / "endpoints.yaml", site.folder / "one.yml")
    assert one.read_text() == written
    site_block = bundle.read_text().partition("resources:")[0]
    bundle.write_text(site_block)
    assert site.run("plan", "--detailed-exitcode").code == 0
    check(site.run("export", "nobody"), site.folder, "export/unknown")


def made_by_the_api(site: Site) -> None:
    """What is applied now has been made through the API, as far as anybody can tell."""
    store = SqliteStore(site.database, is_gone)
    state = site.state()
    lock, _ = store.acquire(owner_of_this_process("api"), 0)
    for one in state.endpoints.values():
        changed = EndpointRecord(one.name, one.name, API_OWNER, one.block, one.config_version, one.targets)
        state = store.commit(state, [Published(changed, Stamp("ana", 0.0, "api"))], lock, 1)
    store.release(lock)


def test_import(site: Site) -> None:
    site.configure(ONE)
    site.apply()
    made_by_the_api(site)
    engines = site.engines()
    refused = site.run("plan")
    assert refused.code == 1
    assert "fix: take it over: servestate import solo; or rename it here" in refused.err
    before = site.state()
    check(site.run("import", "solo", "--auto-approve"), site.folder, "export/import")
    site.run("apply", "--auto-approve").ok()  # the table of the fake write above is written again
    after = site.state()
    assert after.endpoints["solo"].owner == "default"
    assert after.endpoints["solo"].targets == before.endpoints["solo"].targets
    assert site.engines() == engines
    assert site.run("plan", "--detailed-exitcode").code == 0
    history = after.endpoints["solo"].history
    assert history is not None
    assert history.changed.through == "import"


@pytest.mark.slow
def test_import_asks(site: Site) -> None:
    site.configure(ONE)
    site.apply()
    made_by_the_api(site)
    terminal = site.terminal("import", "solo")
    terminal.answer("Enter a value: ", "no")
    assert terminal.end() == 3
    assert "Import cancelled." in terminal.seen
    assert site.state().endpoints["solo"].owner == API_OWNER


@pytest.mark.slow
def test_what_cannot_be_imported(site: Site) -> None:
    site.configure(ONE)
    site.apply()
    check(site.run("import", "solo", "gone", "--auto-approve"), site.folder, "export/import_refused")
    text = (site.folder / "endpoints.yaml").read_text()
    site.write("bundle: {name: other}\n" + text)
    check(site.run("import", "solo", "--auto-approve"), site.folder, "export/import_of_another")
    site.run("import", "solo", "--auto-approve", "--from", "default").ok()
    assert site.state().endpoints["solo"].owner == "other"
    assert site.run("plan", "--detailed-exitcode").code == 0
    site.write(text.replace("name: solo", "name: else"))
    check(site.run("import", "solo", "--auto-approve"), site.folder, "export/import_unwritten")
