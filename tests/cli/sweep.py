"""Killing an apply somewhere, applying again, and what must then hold."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from servestate.planner.address import InstanceAddress, parse_instance
from servestate.planner.launch import LaunchSpec
from servestate.planner.state import Phase, State
from servestate.runtime import executor
from tests.cli.harness import DRIVER, Endpoints, Result, Site, local, remote

T = TypeVar("T")
KILLED = -9
AT_ONCE = 2
"""Sites that are worked on at the same time: the machines of CI have two cores."""


@dataclass(frozen=True)
class Operation:
    """A site that is applied as `before`, then meets what `meanwhile` does, then is to become `after`."""

    before: Endpoints
    after: Endpoints
    settings: dict[str, Any] = field(default_factory=dict)
    meanwhile: Callable[[Site], None] = lambda site: None


def _lose_table(site: Site) -> None:
    site.table.unlink()


def _forget_a_pair(site: Site) -> None:
    """Launch a pair, then put the state back to before that: what runs is in no state."""
    earlier = site.database.read_bytes()
    site.configure({**NOTHING, **_PAIR})
    site.apply()
    site.database.write_bytes(earlier)


NOTHING: Endpoints = {"idle": {"theirs": remote("idle")}}
"""A bundle must hold an endpoint; this one is there from the start and never changes."""
_PAIR = {"e": {"a": local("1", 90), "b": local("1", 10)}}
_ROUTES = {"x": {"a": remote("a", 90), "b": remote("b", 10)}}
_RECREATE = {"overrides": {"e/a": {"strategy": "recreate"}}}

OPERATIONS = {
    "create processes": Operation({}, _PAIR),
    "create external": Operation({}, _ROUTES),
    "update a process": Operation(_PAIR, {"e": {"a": local("2", 90), "b": local("1", 10)}}),
    "update an external": Operation(_ROUTES, {"x": {"a": remote("c", 90), "b": remote("b", 10)}}),
    "recreate a process": Operation(_PAIR, {"e": {"a": local("2", 90), "b": local("1", 10)}}, _RECREATE),
    "split processes": Operation(_PAIR, {"e": {"a": local("1", 50), "b": local("1", 50)}}),
    "split externals": Operation(_ROUTES, {"x": {"a": remote("a", 50), "b": remote("b", 50)}}),
    "remove an entity": Operation(_PAIR, {"e": {"a": local("1")}}),
    "delete processes": Operation({**_PAIR, **_ROUTES}, _ROUTES),
    "delete externals": Operation({**_PAIR, **_ROUTES}, _PAIR),
    "lost table": Operation(_PAIR, {"e": {"a": local("2", 90), "b": local("1", 10)}}, {}, _lose_table),
    "lost state": Operation({}, {"e": {"a": local("2", 90), "b": local("1", 10)}}, {}, _forget_a_pair),
}


def failpoints_in_source() -> set[str]:
    """Every name that the executor passes to `reach`, read from its source, so none can be missed."""
    tree = ast.parse(Path(executor.__file__).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    prefixes = {_text(c.args[0]) for c in calls if _name(c) == "_write_table"}
    found: set[str] = set()
    for call in calls:
        if _name(call) == "reach":
            name = _text(call.args[0])
            found |= {name.replace("{point}", p) for p in prefixes} if "{point}" in name else {name}
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", name) for name in found), found
    return found


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _text(node: ast.expr) -> str:
    """A string literal; in an f-string, `{name}` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr), ast.dump(node)
    parts = (p.value if isinstance(p, ast.Constant) else f"{{{ast.unparse(p.value)}}}" for p in node.values)  # type: ignore[attr-defined]
    return "".join(map(str, parts))


def prepare(site: Site, operation: Operation) -> None:
    """Bring the site to where `operation` starts, and configure what it is to become."""
    site.configure({**NOTHING, **operation.before}, **operation.settings)
    site.apply()
    operation.meanwhile(site)
    site.configure({**NOTHING, **operation.after}, **operation.settings)


def reached_by(site: Site, operation: Operation) -> list[str]:
    """The failpoints that `operation` passes, `point#n` at the nth time."""
    prepare(site, operation)
    record = site.folder / "failpoints"
    process = site.start("list_failpoints", "apply", "--auto-approve", program=DRIVER, FAILPOINTS=str(record))
    out, err = process.communicate(timeout=60)
    assert process.returncode in (0, 4), (out, err)
    counts: Counter[str] = Counter()
    points = []
    for point in record.read_text().splitlines():
        counts[point] += 1
        points.append(f"{point}#{counts[point]}")
    return points


def check_survives(site: Site, killed: Result, wanted: Endpoints) -> None:
    """After the killed apply the state is whole and true, and one more apply brings everything in order."""
    check_state(site, killed.out)
    again = site.run("apply", "--auto-approve")
    assert again.code == 0, (again.out, again.err)
    check_converged(site, wanted)


def check_state(site: Site, said: str) -> None:
    """The state is whole, and what the output called done is in it."""
    if site.database.exists():
        assert site.integrity() == "ok"
    state = site.state()
    for address in _said(said, "Launched"):
        assert address in state.instances, f"{address} was said to be launched"
    for address in _said(said, "Creation complete"):
        assert state.instances[address].phase in (Phase.READY, Phase.DRAINING, Phase.STOPPING)


def _said(text: str, what: str) -> list[InstanceAddress]:
    return [parse_instance(id) for id in re.findall(rf"{what} after \d+s \[id=(\S+)\]", text)]


def check_converged(site: Site, wanted: Endpoints) -> None:
    """What runs is what is wanted, once each; a further plan finds nothing to do."""
    plan = site.run("plan", "--detailed-exitcode")
    assert plan.code == 0, (plan.out, plan.err)
    state = site.state()
    local_entities = sorted(f"{n}/{e}" for n, es in wanted.items() for e in es if "entity_name" in es[e])
    assert sorted(address.partition("@")[0] for address in site.alive()) == local_entities
    assert site.alive() == sorted(_processes(state))
    assert len(site.processes()) == 2 * len(local_entities)  # a shim and an engine each
    assert site.doubles() == ""
    assert site.integrity() == "ok"
    for name, entities in wanted.items():
        assert [t.entity for t in state.endpoints[name].targets] == list(entities)


def _processes(state: State) -> list[str]:
    return [str(a) for a, i in state.instances.items() if isinstance(i.spec, LaunchSpec)]


def on_sites(folder: Path, cases: Sequence[T], work: Callable[[Site, T], object]) -> None:
    """Do `work` on each case in a site of its own, a few at once. All of them have to succeed."""

    def one(numbered: tuple[int, T]) -> str:
        number, case = numbered
        site = Site(folder / f"site{number}")
        try:
            work(site, case)
            return ""
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return f"{case}: {error}"
        finally:
            site.clean_up()
            shutil.rmtree(site.folder, ignore_errors=True)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        failures = [failure for failure in pool.map(one, enumerate(cases)) if failure]
    if failures:
        pytest.fail(f"{len(failures)} of {len(cases)}:\n" + "\n\n".join(failures), pytrace=False)
