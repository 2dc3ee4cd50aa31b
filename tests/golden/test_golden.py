"""Every folder beside this file is a case: desired.yaml, state.json and live.json -> plan.txt and plan.json.

`verb.txt` holds `destroy` where the plan is one of `servestate destroy`, `surroundings.json` hosts, images
and models where they matter; where planning is refused, error.txt holds what is printed in place of the plan.
A new case is a new folder with the three inputs. To write the expected files anew, and then read every line
of the difference:

    SERVESTATE_REWRITE_GOLDEN=1 python -m pytest tests/golden
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servestate.planner.address import parse_instance
from servestate.planner.codec import decode_instance, decode_plan, decode_record, encode_plan
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.fit import ModelFacts
from servestate.planner.launch import Placement
from servestate.planner.live import Live, LiveStatus, Observation
from servestate.planner.plan import Plan, make_plan
from servestate.planner.render import render_plan
from servestate.planner.resolve import Resolved, resolve
from servestate.planner.revision import canonical_json
from servestate.planner.spec.bundle import Document, load
from servestate.planner.stamp import Stamp
from servestate.planner.state import State
from servestate.planner.surroundings import ALONE, Gpu, Host, ImageFacts, Surroundings
from servestate.runtime.refresh import sort_out

HERE = Path(__file__).parent
CASES = sorted(folder for folder in HERE.iterdir() if (folder / "desired.yaml").exists())
REWRITE = "SERVESTATE_REWRITE_GOLDEN"


def desired_of(case: Path) -> Resolved:
    desired = load([Document("desired.yaml", (case / "desired.yaml").read_text())])
    if destroys(case):
        return Resolved(desired.bundle, (), "destroy")
    return resolve(desired, frozenset({"process", "docker"}))


def destroys(case: Path) -> bool:
    verb = case / "verb.txt"
    return verb.exists() and verb.read_text().strip() == "destroy"


def state_of(case: Path) -> State:
    """The state; endpoint blocks and policies are written out as objects so that they can be read."""
    value = json.loads((case / "state.json").read_text())
    records = [decode_record(json.dumps(_recorded(e))) for e in value["endpoints"]]
    instances = [decode_instance(json.dumps(i)) for i in value["instances"]]
    return State(
        value["lineage"],
        value["serial"],
        value["table_serial"],
        {record.name: record for record in records},
        {instance.address: instance for instance in instances},
    )


def _recorded(endpoint: dict[str, Any]) -> dict[str, Any]:
    """The record as it is stored: what is JSON in it is text."""
    texts = {key: canonical_json(endpoint[key]) for key in ("block", "traffic") if key in endpoint}
    return {**endpoint, **texts}


def live_of(case: Path, state: State) -> Live:
    value = json.loads((case / "live.json").read_text())
    live = sort_out(map(_observation, value["things"]), state, value["table_version"])
    removed = {name: Stamp(**stamp) for name, stamp in value.get("removed", {}).items()}
    return replace(live, router_trouble=value.get("router_trouble", ""), removed=removed)


def _observation(thing: dict[str, Any]) -> Observation:
    read = {"address": parse_instance(thing["address"]), "status": LiveStatus(thing["status"])}
    held = thing.get("placement")
    placement = Placement(**{**held, "gpus": tuple(held["gpus"])}) if held else Placement()
    fields = tuple(sorted(thing.get("fields", {}).items()))
    return Observation(**{**thing, **read, "placement": placement, "fields": fields})


def surroundings_of(case: Path) -> Surroundings:
    file = case / "surroundings.json"
    if not file.exists():
        return ALONE
    value = json.loads(file.read_text())
    return Surroundings(
        {(h["provider"], h["name"]): _host(h) for h in value["hosts"]},
        {(i.pop("host"), i.pop("image")): ImageFacts(**i) for i in value["images"]},
        {source: ModelFacts(**facts) for source, facts in value["models"].items()},
        value.get("model_troubles", {}),
    )


def _host(value: dict[str, Any]) -> Host:
    gpus = tuple(Gpu(**{**gpu, "holders": tuple(gpu.get("holders", ()))}) for gpu in value["gpus"])
    return Host(**{**{k: v for k, v in value.items() if k != "provider"}, "gpus": gpus})


def plan_of(case: Path) -> Plan:
    state = state_of(case)
    live = live_of(case, state)
    return make_plan(desired_of(case), state, live, surroundings_of(case), destroy=destroys(case))


def readable(plan: Plan) -> str:
    """The plan file, indented; its digest covers the canonical form."""
    return json.dumps(json.loads(encode_plan(plan)), indent=2, ensure_ascii=False) + "\n"


def outputs(case: Path) -> dict[str, str]:
    """The expected files by name, as they come out now."""
    try:
        plan = plan_of(case)
    except InvalidInput as refused:
        return {"error.txt": f"{refused}\n"}
    return {"plan.txt": render_plan(plan), "plan.json": readable(plan)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_plan(case: Path) -> None:
    found = outputs(case)
    if os.environ.get(REWRITE):
        assert not os.environ.get("CI"), f"{REWRITE} is set: a CI job must compare, never rewrite"
        for name, text in found.items():
            (case / name).write_text(text)
    inputs = {"desired.yaml", "state.json", "live.json", "surroundings.json", "verb.txt"}
    assert {path.name for path in case.iterdir()} - inputs == found.keys()
    for name, text in found.items():
        assert text == (case / name).read_text(), f"{case.name}/{name} differs; see the top of this test"


def planned() -> list[Path]:
    return [case for case in CASES if not (case / "error.txt").exists()]


@pytest.mark.parametrize("case", planned(), ids=lambda case: case.name)
def test_the_plan_file_comes_back(case: Path) -> None:
    plan = plan_of(case)
    assert decode_plan(encode_plan(plan)) == plan


# What programs that read Terraform's output match: the first is of tfcmt, the anchored ones of CI scripts.
SUMMARY = re.compile(r"^(Plan: \d|No changes.)")
COUNTS = re.compile(r"^Plan: (\d+) to add, (\d+) to change, (\d+) to destroy.$")
HEADERS = {
    "create": re.compile(r"^ *# (.*) will be created$"),
    "update": re.compile(r"^ *# (.*) will be updated in-place$"),
    "delete": re.compile(r"^ *# (.*) will be destroyed$"),
    "replace": re.compile(r"^ *# (.*?)(?: is tainted, so)? must be replaced$"),
}
MARKS = {"create": "  +", "update": "  ~", "delete": "  -"}
LEGEND = {
    "create": "  + create",
    "update": "  ~ update in-place",
    "delete": "  - destroy",
    "delete-then-create": "-/+ destroy and then create replacement",
    "create-then-delete": "+/- create replacement and then destroy",
}


@pytest.mark.parametrize("case", planned(), ids=lambda case: case.name)
def test_programs_that_read_terraforms_output_can_read_this(case: Path) -> None:
    plan, lines = plan_of(case), render_plan(plan_of(case)).splitlines()
    summaries = [line for line in lines if SUMMARY.match(line)]
    assert len(summaries) == 1
    if plan.is_empty:
        assert summaries == ["No changes. Your infrastructure matches the configuration."]
        return
    add, change, destroy = map(int, COUNTS.match(summaries[0]).groups())  # type: ignore[union-attr]
    found = {kind: _addresses(pattern, lines) for kind, pattern in HEADERS.items()}
    assert len(found["create"]) + len(found["replace"]) == add
    assert len(found["update"]) == change
    assert len(found["delete"]) + len(found["replace"]) == destroy
    assert bool(re.search(r"([1-9][0-9]* to destroy.)", summaries[0])) == (destroy > 0)
    for one in plan.changes:
        kind = "replace" if one.action.replaces else str(one.action)
        assert str(one.address) in found[kind]
        mark = f"{one.action.glyph:>3}"
        assert f'{mark} resource "{_kind(str(one.address))}" "{one.address}" {{' in lines
    used = {str(one.action) for one in plan.changes}
    if not used:
        return
    start = lines.index("plan. Resource actions are indicated with the following symbols:") + 1
    assert lines[start : start + len(used)] == [text for action, text in LEGEND.items() if action in used]
    assert lines[start + len(used) : start + len(used) + 2] == [
        "",
        "servestate will perform the following actions:",
    ]


def _addresses(pattern: re.Pattern[str], lines: list[str]) -> list[str]:
    return [match[1] for line in lines if (match := pattern.match(line))]


def _kind(address: str) -> str:
    return "served_entity" if "/" in address else "endpoint"


@pytest.mark.parametrize("case", planned(), ids=lambda case: case.name)
def test_drift_stands_in_its_own_section(case: Path) -> None:
    plan, text = plan_of(case), render_plan(plan_of(case))
    note = "Note: Objects have changed outside of servestate"
    assert (note in text.splitlines()) == bool(plan.drift)
    if plan.drift:
        section, rule, _ = text.partition("─" * 77 + "\n")
        assert rule
        assert section.startswith(note)
        assert all(drift.address in section for drift in plan.drift)


def test_there_are_cases() -> None:
    assert len(CASES) >= 25
