"""Keepers in a world in memory, on a real store, ledger and lock: what becomes of updates whatever happens.

A `Script` acts at the nth call that reaches the world, in the very thread that makes it: so every moment of
an update can be hit without luck.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.launch import Spec
from servestate.planner.live import Observation
from servestate.planner.owners import API_OWNER
from servestate.planner.plan import make_plan
from servestate.planner.resolve import resolve
from servestate.planner.spec.bundle import load
from servestate.planner.spec.site import Site
from servestate.planner.spec.tree import Document
from servestate.planner.state import EndpointRecord, State
from servestate.providers.fake import Behaviour, FakeProvider, FakeWorld, Fault
from servestate.providers.protocol import Launched, Marks, PermanentError, Provider, Readiness, TransientError
from servestate.runtime.api import goals, keeper
from servestate.runtime.api.call import Refusal
from servestate.runtime.api.desk import Desk
from servestate.runtime.api.hands import Hands
from servestate.runtime.api.ledger import EntityNote, Ledger, Status, Update
from servestate.runtime.api.site import SiteSource
from servestate.runtime.api.view import View
from servestate.runtime.apply import Finished, carry_out
from servestate.runtime.keyring import Keyring
from servestate.runtime.look import look_around
from servestate.runtime.reporter import Reporter
from servestate.runtime.store.protocol import Lock, StoreError
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.workspace import Workspace, is_gone, owner_of_this_process
from tests.cli.harness import until
from tests.runtime.disks import full_disk

GOOD, BETTER, GATED, DEADLY = "1", "2", "8", "9"
"""Versions of the one model: two that serve, one that is never ready, one that dies at start."""


def site(**overrides: Any) -> Site:
    versions = {
        v: {"engine": "command", "argv": ["serve", "{port}", v], "ready_timeout_s": 20}
        for v in (GOOD, BETTER, GATED, DEADLY)
    }
    model = {"task": "llm/v1/chat", "versions": versions}
    return Site.model_validate({"models": {"m": model}, "overrides": overrides})


def entity(version: str, name: str = "only") -> dict[str, Any]:
    return {"name": name, "entity_name": "m", "entity_version": version, "workload_size": "Small"}


def config(*versions: str) -> dict[str, Any]:
    """A config of one entity for each version, or of the only one."""
    if len(versions) == 1:
        return {"served_entities": [entity(versions[0])]}
    names = "abc"[: len(versions)]
    shares = [100, *[0] * (len(versions) - 1)]
    routes = [{"served_entity_name": n, "traffic_percentage": s} for n, s in zip(names, shares, strict=True)]
    served = [entity(version, name) for name, version in zip(names, versions, strict=True)]
    return {"served_entities": served, "traffic_config": {"routes": routes}}


class _World(FakeWorld):
    """Things behave by the version that their revision stands for."""

    def __init__(self, of: Site) -> None:
        super().__init__()
        self.acts: dict[str, Behaviour] = {}
        for version, act in ((GATED, Behaviour(ready_after=None)), (DEADLY, Behaviour(dies_after=0))):
            self.acts[revision_of(version, of)] = act

    def behaviour(self, address: InstanceAddress) -> Behaviour:
        """See `FakeWorld.behaviour`."""
        return self.acts.get(address.revision, super().behaviour(address))


def revision_of(version: str, of: Site) -> str:
    """The revision of an entity of that version, whichever endpoint it is of."""
    (endpoint,) = goals.resolved({"name": "any", "config": config(version)}, None, of).endpoints
    return endpoint.entities[0].revision


@dataclass
class Script:
    """Does something once, as the nth call of the world begins. `calls` counts them all."""

    act: Callable[[], object] = lambda: None
    nth: int = 0
    calls: int = 0

    def reached(self) -> None:
        self.calls += 1
        if self.calls == self.nth:
            self.act()


class _Scripted(FakeProvider):
    """The provider of the fake world, with a script before every call of it."""

    def __init__(self, world: FakeWorld, script: Script) -> None:
        super().__init__(world, "process")
        self._script = script

    async def observe(self, lineage: str) -> list[Observation]:
        self._script.reached()
        return await super().observe(lineage)

    async def launch(self, spec: Spec, marks: Marks) -> Launched:
        self._script.reached()
        return await super().launch(spec, marks)

    async def probe(self, handle: str, spec: Spec) -> Readiness:
        self._script.reached()
        return await super().probe(handle, spec)

    async def stop(self, handle: str, grace_s: float) -> None:
        self._script.reached()
        await super().stop(handle, grace_s)


class _Store(SqliteStore):
    """The real store, on a disk that can fail. `look` is called whenever somebody looks at the lock."""

    def __init__(self, path: Path, broken: threading.Event, look: Callable[[], None]) -> None:
        super().__init__(path, is_gone)
        self._broken = broken
        self._look = look

    def held(self) -> Lock | None:
        found = super().held()
        self._look()
        return found

    def commit(self, before: State, events: Any, lock: Lock, now: float) -> State:
        if self._broken.is_set():
            raise StoreError(Diagnostic("SS402", "the disk is full"))
        return super().commit(before, events, lock, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workspace(Workspace):
    fakes: Mapping[str, Provider] = field(default_factory=dict)

    def providers(self, state: State) -> Mapping[str, Provider]:
        return self.fakes


class _Source(SiteSource):
    def __init__(self, open_site: Callable[[], Workspace]) -> None:
        self._open = open_site

    def site(self) -> Site:
        return self._open().site

    def workspace(self) -> Workspace:
        return self._open()


NAME = "chat"


@dataclass
class Rig:
    """A site with an API's desk, and one endpoint that most tests are about."""

    folder: Path
    of: Site = field(default_factory=site)
    script: Script = field(default_factory=Script)
    broken: threading.Event = field(default_factory=threading.Event)
    said: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    looks: int = 0

    def __post_init__(self) -> None:
        self.world = _World(self.of)
        self.desk = self.open_desk()

    def open_desk(self) -> Desk:
        """What a process of the API has when it starts."""
        workspace = self.workspace()
        desk = Desk(
            _Source(self.workspace),
            View(workspace),
            Ledger(workspace.ledger_path),
            Hands(self.workspace),
            Keyring(b"key", {}),
            lambda subject, text: self.said.append(f"{subject}: {text}"),
        )
        desk.resume()
        return desk

    def workspace(self) -> Workspace:
        store = _Store(self.folder / "state.db", self.broken, self._looked_at)
        fakes = {"process": _Scripted(self.world, self.script)}
        return _Workspace(self.folder, self.folder, self.of, store, fakes=fakes)

    def _looked_at(self) -> None:
        self.looks += 1

    def looks_at_the_lock(self, times: int) -> None:
        """Return once whoever waits for the lock has looked at it so often from now on."""
        enough = self.looks + times
        until(lambda: self.looks >= enough, f"the lock is looked at: {self.said}")

    @property
    def state(self) -> State:
        return self.workspace().store.read() or State("")

    @property
    def record(self) -> EndpointRecord:
        return self.state.endpoints[NAME]

    def update_of(self, wanted: Mapping[str, Any], name: str = NAME) -> Update:
        """What the API would promise for a request of that config."""
        record = self.state.endpoints.get(name)
        base = {"name": name} if record is None else goals.written_block(record)
        judged = goals.as_judged(goals.resolved({**base, "config": wanted}, record, self.of))
        block = judged if record is None else {"name": name, "config": judged["config"]}
        return Update(name, block, goals.config_digest(record), time.time(), "ann")

    def promise(self, wanted: Mapping[str, Any], name: str = NAME) -> None:
        """Ask for a config, as a request does; returns when that is answered."""
        asyncio.run(self.desk.promise(self.update_of(wanted, name), {}))

    def begin(self, wanted: Mapping[str, Any], name: str = NAME) -> None:
        """The same, without waiting for the answer."""
        self.begun(lambda: self.promise(wanted, name))

    def begun(self, work: Callable[[], object]) -> None:
        """Do something meanwhile; it must have ended when the test does."""
        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def become(self, wanted: Mapping[str, Any], name: str = NAME) -> None:
        """Ask for a config and wait until everything about it is over."""
        self.promise(wanted, name)
        self.quiet()

    def cancel(self) -> None:
        """What a request to cancel does, but for waiting."""
        update = self.desk.ledger.get(NAME)
        if update is not None and update.status is Status.IN_PROGRESS:
            self.desk.ledger.put(update.ended(Status.CANCELED, "canceled by ann", {}))
            self.desk._ask(NAME)

    def delete(self) -> None:
        """What a request to delete does, but for waiting."""
        self.desk._ask(NAME, "ann")

    def quiet(self) -> None:
        """Wait until all requests are answered and no keeper has anything to do."""
        for thread in self.threads:
            thread.join(15)
        until(lambda: not self.desk._keepers, f"all keepers have gone home: {self.said}")

    def waits_for(self, version: str) -> None:
        """Return once an instance of that version is being waited for."""
        revision = revision_of(version, self.of)

        def probed() -> bool:
            return any(t.marks.address.revision == revision and t.probes for t in self.running())

        until(probed, f"version {version} is being waited for: {self.said}")

    def running(self) -> list[Any]:
        return [thing for thing in [*self.world.things.values()] if thing.status != "exited"]

    def versions(self) -> list[str]:
        """The versions of what runs, whatever it serves."""
        known = {revision_of(v, self.of): v for v in (GOOD, BETTER, GATED, DEADLY)}
        return sorted(known[thing.marks.address.revision] for thing in self.running())

    def serving(self) -> list[str]:
        """The versions that traffic goes to; each must be ready and run once."""
        known = {revision_of(v, self.of): v for v in (GOOD, BETTER, GATED, DEADLY)}
        state = self.state
        found = [a for t in state.endpoints[NAME].targets for a in t.instances]
        for address in found:
            assert state.instances[address].phase == "ready"
            assert len(self.world.alive(address)) == 1
        return [known[address.revision] for address in found]

    def check_nothing_over(self) -> None:
        """What is recorded is what runs and what traffic goes to."""
        state = self.state
        routed = {a for r in state.endpoints.values() for t in r.targets for a in t.instances}
        assert set(state.instances) == routed
        assert {thing.marks.address for thing in self.running()} == routed
        assert self.workspace().store.held() is None

    def status(self) -> str:
        """How the last update stands; "" where it is done."""
        update = self.desk.ledger.get(NAME)
        return str(update.status) if update is not None else ""

    def apply(self, text: str) -> None:
        """Apply a bundle, as the command line does."""
        workspace = self.workspace()
        desired = resolve(load([Document("b.yaml", text)]), frozenset({"process"}))
        state = workspace.store.read() or State("6dce6f68-0000-4000-8000-000000000003")
        live, surroundings = asyncio.run(look_around(workspace, desired, state, "missing"))
        plan = make_plan(desired, state, live, surroundings)
        done = carry_out(workspace, plan, desired.digest, owner_of_this_process("apply"), Reporter(), 5)
        assert isinstance(done, Finished), done
        assert done.outcome.complete, done.outcome


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_RETRY_S", 0.02)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    ended(made)


def ended(rig: Rig) -> None:
    rig.script.act = lambda: None
    rig.broken.clear()
    rig.desk.stop()
    for thread in rig.threads:
        thread.join(10)
        assert not thread.is_alive()


# Making.


def test_a_new_endpoint_serves(rig: Rig) -> None:
    rig.become(config(GOOD))
    assert (rig.serving(), rig.status(), rig.record.config_version) == ([GOOD], "", 1)
    assert (rig.record.owner, rig.record.key) == (API_OWNER, NAME)
    assert rig.record.history is not None
    assert (rig.record.history.created.by, rig.record.history.created.through) == ("ann", "api")
    rig.check_nothing_over()


def test_it_has_its_name_before_anything_is_started(rig: Rig) -> None:
    rig.promise(config(GATED))
    assert (rig.record.targets, rig.record.config_version) == ((), 0)
    assert "config" not in goals.written_block(rig.record)
    assert rig.status() == Status.IN_PROGRESS


def test_a_first_config_that_fails_leaves_an_endpoint_without_one(rig: Rig) -> None:
    rig.become(config(DEADLY))
    update = rig.desk.ledger.get(NAME)
    assert update is not None
    assert (update.status, rig.record.targets, rig.state.instances) == (Status.FAILED, (), {})
    assert rig.running() == []
    assert "exit code 1" in update.message
    note = update.entities["only"]
    assert (note.deployment, note.message) == ("DEPLOYMENT_FAILED", update.message)


def test_beside_one_that_fails_the_others_are_given_up(rig: Rig) -> None:
    rig.become(config(GOOD, DEADLY))
    update = rig.desk.ledger.get(NAME)
    assert update is not None
    assert {name: note.deployment for name, note in update.entities.items()} == {
        "a": "DEPLOYMENT_ABORTED",
        "b": "DEPLOYMENT_FAILED",
    }
    rig.check_nothing_over()


def test_after_a_first_config_that_failed_comes_one_that_does_not(rig: Rig) -> None:
    rig.become(config(DEADLY))
    rig.become(config(GOOD))
    assert (rig.serving(), rig.status(), rig.record.config_version) == ([GOOD], "", 1)
    rig.check_nothing_over()


def test_what_cannot_be_planned_is_answered_and_leaves_nothing(rig: Rig) -> None:
    unknown = replace(rig.update_of(config(GOOD)), block={"name": NAME, "config": config("77")})
    with pytest.raises(InvalidInput, match="77"):
        asyncio.run(rig.desk.promise(unknown, {}))
    rig.quiet()
    assert (rig.status(), rig.state.endpoints, rig.running()) == ("", {}, [])


# Updates.


@pytest.fixture
def old(rig: Rig) -> Rig:
    """The rig with an endpoint that serves."""
    rig.become(config(GOOD))
    return rig


def test_an_update_takes_the_place_of_the_old(old: Rig) -> None:
    before = old.record
    old.become(config(BETTER))
    assert (old.serving(), old.status(), old.record.config_version) == ([BETTER], "", 2)
    assert [kind for kind, _ in old.world.effects] == ["launch", "launch", "stop"]
    assert before.history is not None
    assert old.record.history is not None
    assert old.record.history.created == before.history.created
    old.check_nothing_over()


def test_the_same_again_does_nothing(old: Rig) -> None:
    before = old.state
    old.become(config(GOOD))
    assert (old.state, old.status()) == (before, "")


def test_the_old_serves_while_the_new_one_loads(old: Rig) -> None:
    old.promise(config(GATED))
    old.waits_for(GATED)
    assert (old.serving(), old.versions(), old.status()) == ([GOOD], [GOOD, GATED], Status.IN_PROGRESS)
    assert old.workspace().store.held() is None  # nobody is kept waiting by a model that loads


def test_an_update_that_fails_leaves_the_old_as_it_was(old: Rig) -> None:
    before = old.record
    old.become(config(DEADLY))
    assert (old.record, old.status(), old.versions()) == (before, Status.FAILED, [GOOD])
    assert old.record.history == before.history
    old.check_nothing_over()


def test_one_that_is_never_ready_says_how_long_was_waited(tmp_path: Path) -> None:
    rig = Rig(tmp_path, site(**{NAME: {"ready_timeout_s": 0.3}}))
    rig.become(config(GOOD))
    rig.become(config(GATED))
    update = rig.desk.ledger.get(NAME)
    assert update is not None
    assert "not ready after 0.3 s" in update.message
    assert rig.serving() == [GOOD]
    rig.check_nothing_over()
    ended(rig)


def test_an_update_after_one_that_failed(old: Rig) -> None:
    old.become(config(DEADLY))
    old.become(config(BETTER))
    assert (old.serving(), old.status(), old.record.config_version) == ([BETTER], "", 2)
    old.check_nothing_over()


def test_where_the_old_had_to_make_room_it_comes_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, site(**{NAME: {"strategy": "recreate"}}))
    rig.become(config(GOOD))
    rig.become(config(DEADLY))
    assert (rig.serving(), rig.status()) == ([GOOD], Status.FAILED)
    rig.check_nothing_over()
    ended(rig)


def test_one_endpoint_does_not_wait_for_another(old: Rig) -> None:
    old.promise(config(GATED))
    old.waits_for(GATED)
    old.promise(config(GOOD), "other")
    until(lambda: old.desk.ledger.get("other") is None, "the other one serves")
    assert (old.status(), len(old.state.endpoints["other"].targets)) == (Status.IN_PROGRESS, 1)


def test_a_newer_promise_takes_the_place_of_an_older_one(old: Rig) -> None:
    """Not through the API, which refuses it; but whatever the ledger holds is what is pursued."""
    old.promise(config(GATED))
    old.waits_for(GATED)
    old.become(config(BETTER))
    assert (old.serving(), old.status()) == ([BETTER], "")
    old.check_nothing_over()


# Giving up, at every moment.


def moments(folder: Path, of: Site, first: str, second: str) -> int:
    """How many calls of the world an update makes that nobody disturbs."""
    rig = Rig(folder, of)
    rig.become(config(first))
    rig.script.calls = 0
    rig.become(config(second))
    ended(rig)
    return rig.script.calls


STRATEGIES = {"surge": site(), "recreate": site(**{NAME: {"strategy": "recreate"}})}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cancelled_at_every_moment(tmp_path: Path, strategy: str) -> None:
    """Whole or not at all: either the old config serves and the update is cancelled, or the new one does."""
    of = STRATEGIES[strategy]
    ends = set()
    for nth in range(1, moments(tmp_path / "counted", of, GOOD, BETTER) + 1):
        rig = Rig(tmp_path / str(nth), of)
        rig.become(config(GOOD))
        rig.script.act, rig.script.nth, rig.script.calls = rig.cancel, nth, 0
        rig.become(config(BETTER))
        ends.add((rig.status(), *rig.serving()))
        rig.check_nothing_over()
        ended(rig)
    assert ends == {(Status.CANCELED, GOOD), ("", BETTER)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_deleted_at_every_moment(tmp_path: Path, strategy: str) -> None:
    of = STRATEGIES[strategy]
    for nth in range(1, moments(tmp_path / "counted", of, GOOD, BETTER) + 1):
        rig = Rig(tmp_path / str(nth), of)
        rig.become(config(GOOD))
        rig.script.act, rig.script.nth, rig.script.calls = rig.delete, nth, 0
        rig.begin(config(BETTER))
        rig.quiet()
        assert (rig.state.endpoints, rig.state.instances, rig.running()) == ({}, {}, [])
        assert rig.status() == ""
        ended(rig)


def test_cancelled_while_a_model_loads(old: Rig) -> None:
    old.promise(config(GATED))
    old.waits_for(GATED)
    old.cancel()
    old.quiet()
    assert (old.serving(), old.status(), old.record.config_version) == ([GOOD], Status.CANCELED, 1)
    old.check_nothing_over()


def test_a_first_config_that_is_cancelled(rig: Rig) -> None:
    rig.promise(config(GATED))
    rig.waits_for(GATED)
    rig.cancel()
    rig.quiet()
    assert (rig.record.targets, rig.status(), rig.running()) == ((), Status.CANCELED, [])


def test_an_update_after_one_that_was_cancelled(old: Rig) -> None:
    old.promise(config(GATED))
    old.waits_for(GATED)
    old.cancel()
    old.promise(config(BETTER))
    old.quiet()
    assert (old.serving(), old.status()) == ([BETTER], "")
    old.check_nothing_over()


def test_deleted_while_a_model_loads(old: Rig) -> None:
    old.promise(config(GATED))
    old.waits_for(GATED)
    asyncio.run(old.desk.delete(NAME, "ann"))
    assert NAME not in old.state.endpoints  # the name is free at once, whatever still ends
    old.quiet()
    assert (old.state.instances, old.running(), old.status()) == ({}, [], "")


def test_made_again_right_after_it_was_deleted(old: Rig) -> None:
    asyncio.run(old.desk.delete(NAME, "ann"))
    old.become(config(BETTER))
    assert (old.serving(), old.status(), old.record.config_version) == ([BETTER], "", 1)
    old.check_nothing_over()


def test_on_a_full_disk_no_secret_is_kept_and_nothing_promised(old: Rig) -> None:
    update = old.update_of(config(BETTER))
    with full_disk(), pytest.raises(Refusal) as refused:
        asyncio.run(old.desk.promise(update, {"0" * 32: "of the request"}))
    assert (refused.value.status, refused.value.retry_after) == (503, 5)
    assert "cannot be kept" in refused.value.message
    assert (old.status(), old.serving()) == ("", [GOOD])


def test_secrets_that_cannot_be_read_keep_nobody_from_deleting(old: Rig) -> None:
    old.workspace().kept_secrets_path.write_text("{")
    asyncio.run(old.desk.delete(NAME, "ann"))
    old.quiet()
    assert old.state.endpoints == {}
    assert any(line.startswith("secrets: those that nobody uses are still kept: ") for line in old.said)


# Others at work.


def hold(rig: Rig) -> Callable[[], None]:
    """Take the lock as somebody else; what gives it back."""
    store = rig.workspace().store
    store.create("6dce6f68-0000-4000-8000-000000000003")
    lock, _ = store.acquire(owner_of_this_process("apply"), time.time())
    return lambda: store.release(lock)


def test_while_somebody_holds_the_lock_it_waits(old: Rig) -> None:
    before, release = old.state, hold(old)
    old.begin(config(BETTER))
    until(lambda: old.status() == Status.IN_PROGRESS, "it is promised")
    old.looks_at_the_lock(4)
    assert (old.state, old.versions()) == (before, [GOOD])
    release()
    old.quiet()
    assert (old.serving(), old.status()) == ([BETTER], "")
    old.check_nothing_over()


def test_while_it_waits_for_the_lock_it_does_not_plan(old: Rig) -> None:
    release = hold(old)
    old.begin(config(BETTER))
    until(lambda: old.status() == Status.IN_PROGRESS, "it is promised")
    old.looks_at_the_lock(3)
    calls = old.script.calls
    old.looks_at_the_lock(5)
    assert old.script.calls == calls
    release()
    old.quiet()


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_what_waits_for_the_lock_can_be_given_up(old: Rig, how: str) -> None:
    release = hold(old)
    old.begin(config(BETTER))
    until(lambda: old.status() == Status.IN_PROGRESS, "it is promised")
    old.looks_at_the_lock(3)
    getattr(old, how)()
    release()
    old.quiet()
    assert old.versions() == ([GOOD] if how == "cancel" else [])
    assert BETTER not in {address for _, address in old.world.effects}


def test_a_lock_that_is_broken_at_any_moment(tmp_path: Path) -> None:
    """The plan in hand ends there and is made anew."""
    for nth in range(1, moments(tmp_path / "counted", STRATEGIES["surge"], GOOD, BETTER) + 1):
        rig = Rig(tmp_path / str(nth))
        rig.become(config(GOOD))
        rig.script.act, rig.script.nth, rig.script.calls = lambda rig=rig: break_lock(rig), nth, 0
        rig.become(config(BETTER))
        assert (rig.serving(), rig.status(), rig.record.config_version) == ([BETTER], "", 2)
        rig.check_nothing_over()
        ended(rig)


def break_lock(rig: Rig) -> None:
    store = rig.workspace().store
    if (held := store.held()) is not None:
        assert store.break_lock(held.id)


BUNDLE = """
bundle: {{name: shop}}
servestate:
  models:
    m:
      task: llm/v1/chat
      versions: {{"1": {one}, "2": {two}}}
resources:
  model_serving_endpoints:
    chat:
      name: chat
      description: {description}
      config:
        served_entities: [{{name: only, entity_name: m, entity_version: "{version}"}}]
"""


def bundle(version: str, description: str = "x") -> str:
    one, two = (
        f'{{engine: command, argv: [serve, "{{port}}", "{v}"], ready_timeout_s: 20}}' for v in (GOOD, BETTER)
    )
    return BUNDLE.format(one=one, two=two, version=version, description=description)


def test_a_config_that_is_applied_meanwhile_wins(rig: Rig) -> None:
    rig.apply(bundle(GOOD))
    rig.promise(config(GATED))
    rig.waits_for(GATED)
    rig.apply(bundle(BETTER))
    rig.quiet()
    update = rig.desk.ledger.get(NAME)
    assert update is not None
    assert (update.status, rig.serving()) == (Status.CANCELED, [BETTER])
    assert "another config was applied meanwhile" in update.message
    assert '"shop"' in update.message
    rig.check_nothing_over()


def test_settings_that_are_changed_meanwhile_are_kept(rig: Rig) -> None:
    rig.apply(bundle(GOOD))
    rig.promise(config(GATED))
    rig.waits_for(GATED)
    asyncio.run(rig.desk.edit(NAME, lambda block: block.update(description="new"), "bob"))
    rig.world.acts.clear()  # it has loaded
    rig.quiet()
    assert (rig.record.owner, rig.serving(), rig.record.config_version) == ("shop", [GATED], 2)
    assert goals.written_block(rig.record)["description"] == "new"


def test_an_endpoint_of_a_bundle_stays_the_bundles(rig: Rig) -> None:
    rig.apply(bundle(GOOD))
    rig.become(config(DEADLY))
    assert (rig.record.owner, rig.serving(), rig.status()) == ("shop", [GOOD], Status.FAILED)
    asyncio.run(rig.desk.delete(NAME, "ann"))
    rig.quiet()
    assert (rig.state.endpoints, rig.running()) == ({}, [])
    rig.apply(bundle(BETTER))
    assert rig.serving() == [BETTER]


# What fails.


def test_a_store_that_cannot_be_written_fails_the_update(old: Rig) -> None:
    before = old.state
    old.broken.set()
    old.become(config(BETTER))
    assert (old.state, old.status(), old.versions()) == (before, Status.FAILED, [GOOD])
    old.broken.clear()
    old.become(config(BETTER))
    assert (old.serving(), old.status()) == ([BETTER], "")
    old.check_nothing_over()


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_store_that_breaks_in_the_middle(old: Rig, nth: int) -> None:
    """Whatever was going on: once the store is back, the next update ends as wanted, with nothing over."""
    old.script.act, old.script.nth, old.script.calls = old.broken.set, nth, 0
    old.begin(config(BETTER))
    old.quiet()
    assert old.versions() in ([GOOD], [GOOD, BETTER], [BETTER])
    old.broken.clear()
    old.become(config(BETTER))
    assert (old.serving(), old.status()) == ([BETTER], "")
    old.check_nothing_over()


def test_a_provider_that_cannot_be_asked_fails_the_update(old: Rig) -> None:
    before = old.record
    done = old.world.calls["observe", ""]
    for nth in range(1, 30):
        old.world.fail("observe", "", done + nth, Fault(TransientError("no daemon")))
    old.become(config(BETTER))
    update = old.desk.ledger.get(NAME)
    assert update is not None
    assert (update.status, old.record) == (Status.FAILED, before)
    assert "no daemon" in update.message


def test_what_could_not_be_ended_is_ended_by_the_next_process(old: Rig) -> None:
    (stuck,) = (a for t in old.record.targets for a in t.instances)
    for nth in range(1, 40):
        old.world.fail("stop", stuck, nth, Fault(PermanentError("SS510", "it will not end")))
    old.become(config(BETTER))
    assert (old.serving(), old.versions()) == ([BETTER], [GOOD, BETTER])
    assert any("it will not end" in line for line in old.said)
    old.desk.stop()
    old.world._faults.clear()
    old.desk = old.open_desk()
    old.quiet()
    assert old.versions() == [BETTER]
    old.check_nothing_over()


# Going on after a restart.


def test_what_was_promised_is_kept_by_the_next_process(old: Rig) -> None:
    old.promise(config(GATED))
    old.waits_for(GATED)
    old.desk.stop()
    old.world.acts.clear()  # it has loaded meanwhile
    old.desk = old.open_desk()
    old.quiet()
    assert (old.serving(), old.status(), old.record.config_version) == ([GATED], "", 2)
    assert [kind for kind, _ in old.world.effects] == ["launch", "launch", "stop"]
    old.check_nothing_over()


def test_what_has_failed_stays_so(old: Rig) -> None:
    old.become(config(DEADLY))
    before = old.desk.ledger.get(NAME)
    old.desk.stop()
    old.desk = old.open_desk()
    old.quiet()
    assert old.desk.ledger.get(NAME) == before
    assert before is not None
    assert before.entities["only"].deployment == EntityNote("DEPLOYMENT_FAILED").deployment


def test_who_stops_does_not_wait_for_a_model_that_loads(old: Rig) -> None:
    old.promise(config(GATED))
    old.waits_for(GATED)
    began = time.monotonic()
    old.desk.stop()
    assert time.monotonic() - began < 2
    assert old.desk.ledger.get(NAME) is not None
    old.desk = old.open_desk()
    old.cancel()
    old.quiet()
