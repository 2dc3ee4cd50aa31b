"""`servestate plan`: what it shows, its exit codes and colours, and that it changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from servestate.planner.codec import decode_plan
from tests.cli.harness import ONE, SPLIT, Site, echo, local, remote, unprivileged
from tests.cli.snapshots import check, filtered

TWO_ENDPOINTS = {**SPLIT, "elsewhere": {"ours": remote("a", 50), "theirs": remote("b", 50)}}


def test_what_it_creates(site: Site) -> None:
    site.configure(TWO_ENDPOINTS)
    check(site.run("plan"), site.folder, "plan/create")


def test_every_kind_of_change(site: Site) -> None:
    site.configure(TWO_ENDPOINTS)
    site.apply()
    changed = {
        "multi-model": {"current": local("1", 80), "challenger": local("2", 20)},
        "elsewhere": {"ours": remote("a", 50), "other": remote("c", 50)},
    }
    site.configure(changed)
    check(site.run("plan", "--detailed-exitcode"), site.folder, "plan/changes")
    site.configure({"multi-model": TWO_ENDPOINTS["multi-model"]})
    check(site.run("plan"), site.folder, "plan/delete")
    check(site.run("plan", "--destroy"), site.folder, "plan/destroy")
    site.configure(TWO_ENDPOINTS)
    check(site.run("plan", "--detailed-exitcode"), site.folder, "plan/no_changes")


@pytest.mark.slow
def test_recreate_says_that_there_is_a_gap(site: Site) -> None:
    recreate = {"solo/only": {"strategy": "recreate"}}
    site.configure(ONE, overrides=recreate)
    site.apply()
    site.configure({"solo": {"only": local("2")}}, overrides=recreate)
    check(site.run("plan"), site.folder, "plan/recreate")


def test_json_lines(site: Site) -> None:
    site.configure(TWO_ENDPOINTS)
    result = site.run("plan", "--json", "--detailed-exitcode")
    check(result, site.folder, "plan/json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["type"] for line in lines] == ["version", *["planned_change"] * 6, "change_summary"]


def test_saves_the_plan(site: Site) -> None:
    site.configure(ONE)
    check(site.run("plan", "--out", "plan.json"), site.folder, "plan/out")
    decode_plan((site.folder / "plan.json").read_text())
    check(site.run("plan", "--out", "no/such/../../endpoints.yaml/plan.json"), site.folder, "plan/out_fails")


def test_same_inputs_same_bytes(site: Site) -> None:
    site.configure(TWO_ENDPOINTS)
    site.apply()
    site.configure(SPLIT)
    first, second = (_saved(site, name) for name in ("one.json", "two.json"))
    assert first == second


def _saved(site: Site, name: str) -> str:
    site.run("plan", "--out", name).ok()
    return (site.folder / name).read_text()


@pytest.mark.parametrize("variable", ["CI", "SERVESTATE_IN_AUTOMATION"])
def test_no_hints_in_automation(site: Site, variable: str) -> None:
    site.configure(ONE)
    result = site.run("plan", **{variable: "1"}).ok()
    assert "--out" not in result.out
    assert result.out.endswith("Also: 1 route-only, 1 rolling.\n")


@pytest.mark.parametrize(
    ("arguments", "env", "coloured"),
    [
        ((), {}, False),
        ((), {"FORCE_COLOR": "1"}, True),
        (("--color=always",), {"NO_COLOR": "1"}, True),
        (("--no-color",), {"FORCE_COLOR": "1"}, False),
        (("--no-color", "--color=always"), {}, False),
    ],
)
def test_colour_in_a_pipe(
    site: Site, arguments: tuple[str, ...], env: dict[str, str], coloured: bool
) -> None:
    site.configure(ONE)
    assert ("\x1b[" in site.run("plan", *arguments, **env).ok().out) is coloured


@pytest.mark.parametrize(
    ("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)]
)
def test_colour_on_a_terminal(site: Site, env: dict[str, str], coloured: bool) -> None:
    site.configure(ONE)
    terminal = site.terminal("plan", **env)
    assert terminal.end() == 0
    assert ("\x1b[32m" in terminal.seen) is coloured


def test_colours_are_all_that_colour_changes(site: Site) -> None:
    site.configure(ONE)
    plain, coloured = site.run("plan").out, site.run("plan", "--color=always").out
    assert plain == _without_colour(coloured)


def _without_colour(text: str) -> str:
    head, *parts = text.split("\x1b[")
    return head + "".join(part.partition("m")[2] for part in parts)


def test_changes_nothing(site: Site) -> None:
    site.configure(TWO_ENDPOINTS)
    site.run("plan").ok()
    assert not (site.folder / ".servestate").exists()
    site.apply()
    before, running = site.listing(), site.alive()
    site.configure(SPLIT)
    for arguments in ((), ("--json",), ("--destroy",)):
        site.run("plan", *arguments).ok()
    site.configure(TWO_ENDPOINTS)
    assert site.listing() == before
    assert site.alive() == running


def test_works_where_nothing_may_be_written(site: Site, tmp_path: Path) -> None:
    site.configure(SPLIT)
    site.apply()
    before = site.listing()
    folders = [site.folder, site.folder / ".servestate"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        result = site.run("plan", "--detailed-exitcode", prefix=unprivileged())
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert (result.code, result.err) == (0, "")
    assert site.listing() == before


@pytest.mark.slow
def test_names_drift(site: Site) -> None:
    site.configure(SPLIT)
    site.apply()
    os.kill(site.engines()["multi-model/current"], 9)
    result = site.until_drift("plan", "--detailed-exitcode")
    check(result, site.folder, "plan/drift")


def test_a_lost_table_is_written_again(site: Site) -> None:
    site.configure(ONE)
    site.apply()
    wanted = site.table.read_bytes()
    site.table.unlink()
    check(site.run("plan", "--detailed-exitcode"), site.folder, "plan/lost_table")
    site.apply()
    assert site.table.read_bytes() == wanted


def test_protected_endpoints_are_blocked(site: Site) -> None:
    site.configure(ONE, lifecycle={"prevent_destroy": True})
    site.apply()
    site.configure(SPLIT)
    check(site.run("plan", "--detailed-exitcode"), site.folder, "plan/blocked")
    before = site.state()
    check(site.run("apply", "--auto-approve"), site.folder, "apply/blocked")
    assert site.state() == before


@pytest.mark.slow
def test_another_bundle_in_the_way(site: Site) -> None:
    site.configure(ONE)
    site.apply()
    site.write((site.folder / "endpoints.yaml").read_text() + "\nbundle: {name: other}\n")
    check(site.run("plan"), site.folder, "plan/other_owner")


def test_secrets_never_show(site: Site) -> None:
    secret = "s3cr3t-0123456789"
    site.env["SERVESTATE_SECRET_OPENAI__KEY"] = secret
    site.configure({"elsewhere": {"theirs": remote(secret="openai/key")}})
    planned = site.run("plan", "--out", "plan.json").ok()
    applied = site.apply()
    shown = site.run("state", "show", "elsewhere").ok()
    assert all(secret not in text for r in (planned, applied, shown) for text in (r.out, r.err))
    assert all(secret.encode() not in content for content in site.listing().values())
    assert "{{secrets/openai/key}}" in filtered(planned.out, site.folder)


def test_a_version_that_is_not_there(site: Site) -> None:
    site.configure({"solo": {"only": local("9")}}, versions={"1": echo("1")})
    check(site.run("plan"), site.folder, "plan/no_such_version")
