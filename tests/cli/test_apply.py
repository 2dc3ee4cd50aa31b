"""`servestate apply`: from nothing, nothing to do, saved plans, refusals, approval."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from servestate.planner.state import Phase
from tests.cli.harness import ONE, SPLIT, Site, local, remote, until
from tests.cli.snapshots import check


def test_from_nothing(site: Site) -> None:
    site.configure(SPLIT)
    check(site.apply(), site.folder, "apply/fresh")
    assert {i.phase for i in site.state().instances.values()} == {Phase.READY}
    assert site.alive() == sorted(map(str, site.state().instances))


def test_nothing_to_do_writes_nothing(site: Site) -> None:
    site.configure(SPLIT)
    site.apply()
    before, engines = site.listing(), site.engines()
    check(site.apply(), site.folder, "apply/nothing_to_do")
    assert site.listing() == before
    assert site.engines() == engines


def test_a_split_change_restarts_nothing(site: Site) -> None:
    site.configure(SPLIT)
    site.apply()
    engines = site.engines()
    site.configure({"multi-model": {"current": local("1", 50), "challenger": local("1", 50)}})
    check(site.apply(), site.folder, "apply/split")
    assert site.engines() == engines
    assert [t.weight for t in site.state().endpoints["multi-model"].targets] == [50, 50]


def test_a_new_revision_takes_over_before_the_old_one_ends(site: Site) -> None:
    site.configure(ONE)
    site.apply()
    site.configure({"solo": {"only": local("2")}})
    check(site.apply(), site.folder, "apply/replace")
    taking_over = ["LaunchIntended", "Launched", "BecameReady", "Published"]
    events = [event for _, event, _ in site.journal()]
    assert events == [*taking_over, *taking_over, "DrainBegan", "StopIntended", "Stopped"]
    assert site.doubles() == ""


def test_progress_as_json(site: Site) -> None:
    site.configure(ONE)
    result = site.apply("--json")
    kinds = [json.loads(line)["type"] for line in result.out.splitlines() if "apply_progress" not in line]
    head = ["version", "planned_change", "planned_change", "change_summary"]
    assert kinds == [*head, *["apply_start", "apply_complete"] * 3, "change_summary"]


class TestSavedPlan:
    def test_carries_out_exactly_that(self, site: Site) -> None:
        saved(site, SPLIT)
        check(site.run("apply", "plan.json"), site.folder, "apply/saved")
        assert site.run("plan", "--detailed-exitcode").code == 0

    def test_stands_alone_without_a_configuration(self, site: Site) -> None:
        saved(site, ONE)
        (site.folder / "endpoints.yaml").unlink()
        site.run("apply", "plan.json").ok()
        assert len(site.alive()) == 1

    def test_the_same_first_plan_twice_is_refused(self, site: Site) -> None:
        saved(site, ONE)
        site.run("apply", "plan.json").ok()
        refused(site, "apply/stale_serial")

    def test_refused_when_the_configuration_moved(self, site: Site) -> None:
        saved(site, ONE)
        site.configure(SPLIT)
        refused(site, "apply/stale_configuration")

    def test_refused_when_what_it_relies_on_died(self, site: Site) -> None:
        site.configure(SPLIT)
        site.apply()
        saved(site, {"multi-model": {"current": local("1", 90), "challenger": local("2", 10)}})
        engine = site.engines()["multi-model/current"]
        os.kill(engine, 9)
        until(lambda: len(site.alive()) == 1, "its shim has ended too")
        refused(site, "apply/stale_killed")

    def test_refused_when_it_is_of_another_lineage(self, site: Site, tmp_path: Path) -> None:
        other = Site(tmp_path / "other")
        saved(other, ONE)
        site.configure(ONE)
        site.apply()
        shutil.copy(other.folder / "plan.json", site.folder)
        refused(site, "apply/stale_lineage")

    def test_refused_when_a_byte_was_edited(self, site: Site) -> None:
        saved(site, ONE)
        plan = site.folder / "plan.json"
        content = plan.read_bytes()
        for at in range(7, len(content), len(content) // 4):
            plan.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            result = site.run("apply", "plan.json")
            assert result.code == 1
            assert re.match(r"SS303 cannot use plan.json as a plan: ", result.err)
        assert not (site.folder / ".servestate").exists()


def saved(site: Site, endpoints: dict) -> None:
    """Save the plan for these endpoints as plan.json."""
    site.configure(endpoints)
    site.run("plan", "--out", "plan.json").ok()


def refused(site: Site, snapshot: str) -> None:
    """Applying plan.json is refused as the snapshot says, and changes nothing."""
    before, running = site.state(), site.alive()
    check(site.run("apply", "plan.json"), site.folder, snapshot)
    after = site.state()
    assert (after.serial, after.endpoints, after.instances) == (
        before.serial,
        before.endpoints,
        before.instances,
    )
    assert site.alive() == running


@pytest.mark.parametrize(
    "verb", [("apply",), ("apply", "--json"), ("destroy",), ("destroy", "--json"), ("up",)], ids=" ".join
)
def test_nobody_to_approve(site: Site, verb: tuple[str, ...]) -> None:
    # Not even the configuration is read: it is broken.
    site.write("resources: [")
    result = site.run(*verb)
    assert result.code == 64
    assert [json.loads(line)["type"] for line in result.out.splitlines()] == ["diagnostic"] * (
        "--json" in verb
    )
    assert result.err == "servestate: error: nobody is here to approve: pass --auto-approve, or a plan file\n"
    assert not (site.folder / ".servestate").exists()


def test_approved_on_a_terminal(site: Site) -> None:
    site.configure(ONE)
    terminal = site.terminal("apply")
    terminal.answer("Enter a value: ", "yes")
    assert terminal.end() == 0
    assert "Apply complete! Resources: 2 added, 0 changed, 0 destroyed." in terminal.seen
    assert len(site.alive()) == 1


@pytest.mark.parametrize("answer", ["no", "y", "", "YES"])
def test_declined_on_a_terminal(site: Site, answer: str) -> None:
    site.configure(ONE)
    terminal = site.terminal("apply")
    terminal.answer("Enter a value: ", answer)
    assert terminal.end() == 3
    assert "Apply cancelled." in terminal.seen
    assert not (site.folder / ".servestate").exists()


def asleep(pid: int) -> Callable[[], bool]:
    """Whether the process waits in read(): a signal between the question and that is answered only later."""
    return lambda: Path(f"/proc/{pid}/syscall").read_text().startswith("0 ")


def test_interrupted_at_the_question(site: Site) -> None:
    site.configure(ONE)
    terminal = site.terminal("apply")
    terminal.wait_for("Enter a value: ")
    until(asleep(terminal.process.pid), "the question waits for its answer")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert not (site.folder / ".servestate").exists()
    assert "Traceback" not in terminal.seen


def test_external_entities_alone(site: Site) -> None:
    site.configure({"elsewhere": {"ours": remote("a", 50), "theirs": remote("b", 50)}})
    check(site.apply(), site.folder, "apply/external")
    assert site.alive() == []
    assert site.run("plan", "--detailed-exitcode").code == 0
