"""The controller turn by turn, in a world in memory and in virtual time, on a real store and table file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from servestate.planner.address import EntityAddress, InstanceAddress
from servestate.planner.launch import Container, LaunchSpec, Spec
from servestate.planner.live import Live, Observation
from servestate.planner.plan import Plan, make_plan
from servestate.planner.repair import Refused, Served
from servestate.planner.resolve import Resolved, ResolvedEntity
from servestate.planner.revision import revision
from servestate.planner.spec.site import Site
from servestate.planner.state import State
from servestate.planner.surroundings import ALONE, Gpu, Host, ImageFacts, Surroundings
from servestate.planner.timings import Timings
from servestate.providers.fake import Behaviour, FakeProvider, FakeWorld, Fault
from servestate.providers.protocol import Provider, Readiness, TransientError
from servestate.runtime import controller
from servestate.runtime.apply import Finished, carry_out
from servestate.runtime.backoff import nominal_delay_s
from servestate.runtime.controller import Controller
from servestate.runtime.file_stamps import stamp_of
from servestate.runtime.order import Order, decode_order
from servestate.runtime.reporter import Reporter
from servestate.runtime.store.protocol import Owner
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.supervision import (
    HEARTBEAT_S,
    Condition,
    Supervised,
    read_supervision,
    supervision_path,
)
from servestate.runtime.workspace import Workspace, is_gone, owner_of_this_process
from tests.planner.blocks import bundle, endpoint, local
from tests.runtime.disks import full_disk

A, B, C = EntityAddress("one", "a"), EntityAddress("one", "b"), EntityAddress("two", "c")
BOTH = bundle(endpoint("one", local("a", 60), local("b", 40)), endpoint("two", local("c", 100)))
LINEAGE = "6dce6f68-0000-4000-8000-000000000002"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workspace(Workspace):
    fakes: Mapping[str, Provider] = field(default_factory=dict)

    def providers(self, state: State) -> Mapping[str, Provider]:
        return self.fakes


@dataclass
class Rig:
    """One site with its controller; `now` is all the time there is, but for what people set the clock by."""

    folder: Path
    runner: asyncio.Runner
    world: FakeWorld = field(default_factory=FakeWorld)
    now: float = 1_000_000.0
    set_by: float = 0.0
    said: list[str] = field(default_factory=list)
    fakes: dict[str, Provider] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fakes = {"process": FakeProvider(self.world, "process"), **self.fakes}
        store = SqliteStore(self.folder / "state.db", is_gone)
        self.workspace = _Workspace(self.folder, self.folder, Site(), store, fakes=fakes)
        self.controller = self.new_controller()

    def new_controller(self) -> Controller:
        """One that knows only what the files tell."""

        def tell(subject: str, text: str) -> None:
            self.said.append(f"{subject}: {text}")

        return Controller(self.workspace, tell, lambda: self.now + self.set_by, lambda: self.now, lambda: 0.5)

    @property
    def state(self) -> State:
        return self.workspace.store.read() or State(LINEAGE)

    def apply(self, desired: Resolved, surroundings: Surroundings = ALONE) -> None:
        plan = make_plan(desired, self.state, Live(), surroundings)
        done = carry_out(self.workspace, plan, None, owner_of_this_process("apply"), Reporter(), 0)
        assert isinstance(done, Finished)
        assert done.outcome.complete, done.outcome

    def turn(self) -> bool:
        """One round of the loop; whether it did anything."""
        due = self.runner.run(self.controller.look())
        assert due is not None
        repair = self.runner.run(self.controller.choose(due))
        return repair is not None and self.controller.carry_out(repair)

    def after(self, seconds: float, turns: int = 4) -> None:
        """Time passes, then the loop goes round until there is nothing to do, at most `turns` times."""
        self.now += seconds
        for _ in range(turns):
            self.turn()
            self.runner.run(asyncio.sleep(0.001))

    def address(self, entity: EntityAddress) -> InstanceAddress:
        """What the entity's traffic goes to."""
        targets = self.state.endpoints[entity.endpoint].targets
        (found,) = next(t for t in targets if t.entity == entity.entity).instances
        return found

    def crash(self, entity: EntityAddress) -> None:
        self.world.crash(self.address(entity))

    def serves(self, entity: EntityAddress) -> bool:
        return len(self.world.alive(self.address(entity))) == 1

    def of(self, entity: EntityAddress) -> Supervised:
        """What the status file says of it."""
        self.controller._write()
        found = read_supervision(supervision_path(self.workspace))
        assert found is not None
        return found.entities[str(entity)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with asyncio.Runner() as runner:
        made = Rig(tmp_path, runner)
        made.apply(BOTH)
        made.after(0)
        yield made
        assert not made.workspace.store.held()


def launched(rig: Rig, entity: EntityAddress) -> int:
    """How often it was started, the first time included."""
    return sum(1 for what, a in rig.world.effects if what == "launch" and a.startswith(f"{entity}@"))


def test_all_is_well(rig: Rig) -> None:
    serial = rig.state.serial
    rig.after(60)
    assert rig.state.serial == serial
    assert rig.said == []
    assert {rig.of(e).condition for e in (A, B, C)} == {Condition.RUNNING}


def test_what_dies_is_replaced_after_a_second(rig: Rig) -> None:
    rig.crash(A)
    rig.after(0.8)
    assert rig.of(A).condition is Condition.RESTARTING
    assert rig.of(A).reason == "exit code 1"
    rig.after(0.9)
    assert not rig.serves(A)
    rig.after(0.2)
    assert rig.serves(A)
    rig.after(0.8)
    assert (rig.of(A).condition, rig.of(A).backoff.restarts) == (Condition.RUNNING, 1)
    assert [launched(rig, e) for e in (A, B, C)] == [2, 1, 1]
    assert rig.said[0] == "one/a: restarting: 0 restarts, next in 1 s: exit code 1"
    assert len(rig.said) == 3
    assert {e.by.partition("(")[2] for e in rig.workspace.store.journal(7)} >= {"repair)"}


@pytest.mark.slow
def test_a_day_of_crashes_leaves_the_others_alone(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        rig = Rig(tmp_path, runner)
        rig.apply(BOTH)
        rig.after(0)
        end, delays = rig.now + 86_400, []
        while rig.now < end:
            rig.crash(A)
            rig.after(0.8, turns=1)
            waits = rig.of(A).backoff.next_try
            assert waits is not None
            delays.append(waits - rig.now)
            rig.after(waits - rig.now, turns=3)
            assert rig.serves(A)
            assert (rig.of(A).condition is Condition.CRASH_LOOPING) == (len(delays) >= 3)
        assert delays == pytest.approx([nominal_delay_s(n) for n in range(len(delays))])
        assert len(delays) > 280
        assert [launched(rig, e) for e in (B, C)] == [1, 1]
        rig.after(0.8)
        rig.after(601)
        assert (rig.of(A).condition, rig.of(A).backoff.restarts) == (Condition.RUNNING, 0)
        assert len(rig.state.instances) == 3


def test_one_that_loads_for_long_holds_nobody_up(rig: Rig) -> None:
    slow = rig.address(A)
    rig.world.behave(InstanceAddress("one", "a", slow.revision, 1), Behaviour(ready_after=None))
    rig.crash(A)
    rig.after(0.8)
    rig.after(1.1)
    assert launched(rig, A) == 2
    assert not rig.serves(A)
    assert rig.workspace.store.held() is None
    rig.crash(C)
    rig.after(0.8)
    rig.after(1.1)
    assert rig.serves(C)
    assert not rig.serves(A)


def test_a_replacement_that_never_gets_ready_counts(rig: Rig) -> None:
    dying = rig.address(A).revision
    for replica in range(1, 4):
        rig.world.behave(InstanceAddress("one", "a", dying, replica), Behaviour(dies_after=0))
    rig.crash(A)
    rig.after(0.8)
    for delay in (1.0, 2.0, 4.0):
        rig.after(delay + 0.1)
    assert rig.of(A).backoff.restarts == 3
    assert rig.of(A).condition is Condition.CRASH_LOOPING
    assert rig.of(A).backoff.next_try == pytest.approx(rig.now + 8.0)
    assert len([i for i in rig.state.instances if i.of == A]) <= 2
    for replica in range(1, 4):
        rig.world.behave(InstanceAddress("one", "a", dying, replica), Behaviour())
    rig.after(8.1)
    assert rig.serves(A)


def test_nothing_is_replaced_because_a_provider_is_silent(rig: Rig) -> None:
    asked = rig.world.calls["observe", ""]
    for nth in range(asked + 1, asked + 5):
        rig.world.fail("observe", "", nth, Fault(TransientError("the daemon does not answer")))
    rig.crash(A)
    for _ in range(3):
        rig.after(5, turns=1)
    assert launched(rig, A) == 1
    assert [line for line in rig.said if "process" in line] == [
        "process: does not answer, nothing of it is touched until it does: the daemon does not answer"
    ]
    rig.after(60)
    rig.after(60)
    assert "process: answers again" in rig.said
    rig.after(2)
    rig.after(1)
    assert rig.serves(A)
    assert launched(rig, A) == 2


def test_somebody_elses_lock_is_waited_for(rig: Rig) -> None:
    owner = owner_of_this_process("apply")
    lock, _ = rig.workspace.store.acquire(Owner("apply", "bob", owner.host, owner.process), 9e9)
    rig.crash(A)
    rig.after(0.8)
    rig.after(1.1)
    rig.after(1.1)
    assert launched(rig, A) == 1
    assert sum("waits for the lock of bob" in line for line in rig.said) == 1
    rig.workspace.store.release(lock)
    rig.after(0.8)
    assert rig.serves(A)


HOST = Host("far", tuple(Gpu(str(n), 80 << 30, used=0) for n in range(2)))
FULL = replace(HOST, gpus=tuple(replace(gpu, holders=("a stranger",)) for gpu in HOST.gpus))


class Docker(FakeProvider):
    """Containers on the host `far`. A look takes `slow` real seconds; `found` is what a survey says, which
    takes for ever where `lost`, as a probe does then."""

    def __init__(self, world: FakeWorld) -> None:
        super().__init__(world, "docker")
        self.slow = 0.0
        self.found = HOST
        self.lost = False

    async def observe(self, lineage: str) -> list[Observation]:
        await asyncio.sleep(self.slow)
        return await super().observe(lineage)

    async def hosts(self, lineage: str) -> list[Host]:
        if self.lost:
            await asyncio.Event().wait()
        return [self.found]

    async def image(self, host: str, image: str, pull: str) -> ImageFacts:
        return ImageFacts("sha256:0", present=True)

    async def pull(self, host: str, image: str, digest: str, report: Callable[[str], None]) -> None:
        """It is there."""

    async def probe(self, handle: str, spec: Spec) -> Readiness:
        if self.lost:
            await asyncio.Event().wait()
        return await super().probe(handle, spec)


def in_docker(name: str, weight: int) -> ResolvedEntity:
    """An entity that needs a GPU of the host `far`."""
    container = Container("image", "sha256:0")
    spec = LaunchSpec("docker", "command", f"model-{name}", gpus=1, container=container)
    return ResolvedEntity(name, weight, spec, revision(spec), Timings(), ("far",))


MIXED = bundle(endpoint("one", in_docker("a", 60), in_docker("b", 40)), endpoint("two", local("c", 100)))


@dataclass
class Far:
    """A site with two entities in containers on another host and one process, `C`."""

    rig: Rig
    docker: Docker

    def restarted(self, *names: str) -> None:
        """Its controller anew, with a site of these Docker hosts."""
        hosts = {name: {"url": f"ssh://me@{name}"} for name in names}
        site = Site.model_validate({"providers": {"docker": {"hosts": hosts}}})
        self.rig.workspace = replace(self.rig.workspace, site=site)
        self.rig.controller = self.rig.new_controller()
        self.rig.after(0)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    with asyncio.Runner() as runner:
        world = FakeWorld()
        docker = Docker(world)
        made = Far(Rig(tmp_path, runner, world, fakes={"docker": docker}), docker)
        made.rig.apply(MIXED, Surroundings({("docker", "far"): HOST}))
        made.restarted("far")
        yield made


def test_a_host_that_the_site_does_not_know_is_silent_and_not_dead(far: Far) -> None:
    rig = far.rig
    rig.world.vanish(rig.address(A))  # as if its host were not asked
    far.restarted("near")
    serial = rig.state.serial
    rig.after(0.8)
    rig.after(60)
    assert rig.state.serial == serial
    assert rig.said == [
        "site: nothing is looked after on docker host far: not in the site that serve has read"
    ]
    rig.crash(C)
    rig.after(0.8)
    rig.after(1.1)
    assert rig.serves(C)
    far.restarted("far")
    rig.after(1)
    rig.after(2)
    assert rig.serves(A)


def test_what_cannot_be_placed_is_tried_less_and_less(far: Far) -> None:
    rig = far.rig
    far.docker.found = FULL
    rig.crash(A)
    rig.after(0.8)
    waits = []
    for _ in range(4):
        waits.append((rig.of(A).backoff.next_try or 0) - rig.now)
        rig.after(waits[-1] + 0.1)
    assert waits == pytest.approx([1.0, 2.0, 4.0, 8.0])
    assert "fit" in rig.of(A).reason or "GPU" in rig.of(A).reason
    assert launched(rig, A) == 1
    far.docker.found = HOST
    rig.after(17)
    assert rig.serves(A)


def test_what_cannot_be_placed_keeps_no_other_waiting(far: Far) -> None:
    rig = far.rig
    held = rig.state.instances[rig.address(A)].placement.gpus
    full = (replace(gpu, holders=("a stranger",) if gpu.id in held else ()) for gpu in HOST.gpus)
    far.docker.found = replace(HOST, gpus=tuple(full))
    for entity in (A, B, C):
        rig.crash(entity)
    rig.after(0.8)
    rig.after(1.1, turns=6)
    assert [rig.serves(e) for e in (A, B, C)].count(True) == 2
    assert rig.serves(C)


def test_a_replacement_without_a_plan_keeps_no_other_waiting(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = far.rig
    for entity in (A, C):
        rig.crash(entity)
    rig.after(0.8)
    rig.after(1.1, turns=1)
    real = controller.plan_repair

    def plan_repair(state: State, live: Live, wanted: list[Served], around: Surroundings) -> Plan:
        if any(one.address == A for one in wanted):
            raise Refused("it would change more")
        return real(state, live, wanted, around)

    monkeypatch.setattr(controller, "plan_repair", plan_repair)
    rig.after(1.1)
    assert rig.serves(C)
    assert sum("it would change more" in line for line in rig.said) < 4


def test_the_provider_of_a_repair_is_waited_for(far: Far) -> None:
    rig = far.rig
    rig.crash(A)
    rig.after(0.8)
    far.docker.slow = 0.7  # more than a look waits for
    rig.after(1.1, turns=1)
    assert rig.state.instances.keys() > {rig.address(A)}
    assert not any("does not answer" in line for line in rig.said)
    assert launched(rig, A) == 2


def test_one_that_answers_nothing_holds_nobody_up(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "SURVEY_S", 0.1)
    monkeypatch.setattr(controller, "REASON_S", 0.1)
    rig = far.rig
    far.docker.lost = True
    for entity in (A, C):
        rig.crash(entity)
    rig.after(0.8)
    assert rig.of(A).reason == "exit code 1"
    rig.after(1.1)
    rig.after(1.1)
    assert rig.serves(C)
    assert "have not said" in rig.of(A).reason
    far.docker.lost = False
    rig.after(9)
    assert rig.serves(A)


def test_nothing_is_begun_once_it_is_told_to_stop(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.crash(A)
    rig.after(0.8)
    rig.now += 1.1
    real = rig.controller.choose

    async def choose(due: controller._Due) -> controller._Repair | None:
        found = await real(due)
        assert found is not None
        rig.controller.stopping = True  # as a signal does at any time
        return found

    monkeypatch.setattr(rig.controller, "choose", choose)
    rig.controller.run()
    assert launched(rig, A) == 1


def test_a_count_is_kept_while_nothing_can_be_told(rig: Rig) -> None:
    rig.crash(A)
    rig.after(0.8)
    rig.after(1.1)
    before = rig.of(A)
    nth = rig.world.calls["observe", ""]
    for later in range(nth + 1, nth + 4):
        rig.world.fail("observe", "", later, Fault(TransientError("the daemon does not answer")))
    rig.controller = rig.new_controller()
    rig.after(0, turns=1)
    rig.controller = rig.new_controller()
    assert rig.of(A) == before


def test_what_is_no_longer_applied_is_forgotten(rig: Rig) -> None:
    rig.crash(A)
    rig.after(0.8)
    live = rig.runner.run(_look(rig))
    plan = make_plan(bundle(), rig.state, live, destroy=True)
    carry_out(rig.workspace, plan, None, owner_of_this_process("destroy"), Reporter(), 0)
    rig.after(2)
    rig.controller._write()
    found = read_supervision(supervision_path(rig.workspace))
    assert found is not None
    assert found.entities == {}
    assert rig.world.things == {}


async def _look(rig: Rig) -> Live:
    seen = await rig.workspace.fakes["process"].observe(rig.state.lineage)
    return Live({one.address: one for one in seen}, (), rig.state.table_serial)


def test_the_next_controller_goes_on_counting(rig: Rig) -> None:
    for delay in (1.0, 2.0):
        rig.crash(A)
        rig.after(0.8)
        rig.after(delay + 0.1)
    rig.crash(A)
    rig.after(0.8)
    before = rig.of(A)
    rig.controller = rig.new_controller()
    rig.after(0)
    assert rig.of(A) == before
    rig.after(4.1)
    assert rig.serves(A)
    assert rig.of(A).backoff.restarts == 3


@pytest.mark.parametrize("when", ["launched", "ready"])
def test_taken_over_in_the_midst_of_a_repair(rig: Rig, when: str) -> None:
    rig.crash(A)
    rig.after(0.8, turns=1)
    rig.after(1.1, turns=1 if when == "launched" else 2)
    rig.controller = rig.new_controller()
    rig.after(0)
    rig.after(0.8)
    assert rig.serves(A)
    assert launched(rig, A) == 2
    assert rig.of(A).backoff.restarts == 1


@pytest.mark.parametrize("set_by", [-3600.0, 0.0])
def test_signs_of_life_go_on_when_the_clock_is_set(rig: Rig, set_by: float) -> None:
    path = supervision_path(rig.workspace)
    rig.controller._write()
    before = stamp_of(path)
    rig.set_by = set_by
    rig.now += HEARTBEAT_S - 1
    rig.controller._beat()
    assert stamp_of(path) == before
    rig.now += 2
    rig.controller._beat()
    assert stamp_of(path) != before


def test_a_full_disk_does_not_silence_it(rig: Rig) -> None:
    path = supervision_path(rig.workspace)
    rig.controller._write()
    before, text = stamp_of(path), path.read_text()
    rig.now += HEARTBEAT_S + 1
    with full_disk():
        rig.controller._beat()
    assert stamp_of(path) != before
    assert path.read_text() == text


def test_a_damaged_status_file_is_no_obstacle(rig: Rig) -> None:
    supervision_path(rig.workspace).write_text('{"format_version": 1, "entities": []}')
    rig.controller = rig.new_controller()
    rig.after(1)
    assert rig.of(A).condition is Condition.RUNNING


def test_the_order_comes_through() -> None:
    models = {"m": {"task": "llm/v1/chat", "versions": {"1": {"engine": "command", "argv": ["x", "{port}"]}}}}
    docker = {"hosts": {"far": {"url": "ssh://me@far", "gpus": [{"id": "0", "memory": "24GiB"}]}}}
    site = Site.model_validate(
        {"models": models, "providers": {"docker": docker}, "overrides": {"e": {"stop_grace_s": "1m"}}}
    )
    order = Order(site, 42)
    assert decode_order(order.encode()) == order
