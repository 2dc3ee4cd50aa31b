"""One behaviour suite for every provider: what `protocol.Provider` promises, on the fake and the real."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field, replace

import pytest

from servestate.planner.launch import ExternalSpec, LaunchSpec, Spec
from servestate.planner.live import LiveStatus
from servestate.providers.external import ExternalProvider
from servestate.providers.fake import Behaviour, FakeProvider, FakeWorld, Fault
from servestate.providers.protocol import Failed, Launched, Provider, Ready, TransientError
from servestate.providers.readiness import await_ready
from servestate.providers.secrets import EnvSecrets
from tests.docker import images
from tests.providers.docker.place import opened

FAKE = LaunchSpec("fake", "command", "m")
EXTERNAL = ExternalSpec("openai", "https://api.example.com/v1/chat", "gpt", "llm/v1/chat")


@dataclass
class FakeCase:
    """The in-memory world."""

    site: object
    spec: Spec = FAKE
    world: FakeWorld = field(default_factory=FakeWorld)

    def provider(self) -> Provider:
        return FakeProvider(self.world)

    def crash(self, launched: Launched) -> None:
        self.world.crash(self.world.things[launched.handle].marks.address)

    def pause(self, launched: Launched) -> None:
        self.world.pause(self.world.things[launched.handle].marks.address)


@dataclass
class ProcessCase:
    """Real processes."""

    site: object
    spec: Spec

    def provider(self) -> Provider:
        return self.site.provider()

    def crash(self, launched: Launched) -> None:
        os.kill(self._engine(), signal.SIGKILL)

    def pause(self, launched: Launched) -> None:
        os.kill(self._engine(), signal.SIGSTOP)

    def _engine(self) -> int:
        (tree,) = self.site.trees()
        return tree.members[0].pid


@dataclass
class ExternalCase:
    """Somebody else's endpoint."""

    site: object
    spec: Spec = EXTERNAL

    def provider(self) -> Provider:
        return ExternalProvider(EnvSecrets({}))


@dataclass
class DockerCase:
    """Real containers."""

    site: object
    spec: Spec
    place: object

    def provider(self) -> Provider:
        return self.place.provider()

    def crash(self, launched: Launched) -> None:
        self.place.only().kill()

    def pause(self, launched: Launched) -> None:
        self.place.only().pause()


def make(kind, request, site, kit):
    match kind:
        case "docker":
            place = request.getfixturevalue("place")
            return DockerCase(place, place.spec(images.engine_double(place.client)), place)
        case "fake":
            return FakeCase(site)
        case "process":
            return ProcessCase(site, kit.tiny())
        case _:
            return ExternalCase(site)


@pytest.fixture
def place(tmp_path):
    """A site with containers."""
    with opened(tmp_path) as made:
        yield made


DOCKER = pytest.param("docker", marks=pytest.mark.slow)


@pytest.fixture(params=["fake", "process", "external", DOCKER])
def case(request, site, kit):
    return make(request.param, request, site, kit)


@pytest.fixture(params=["fake", "process", DOCKER])
def starting(request, site, kit):
    """Only the providers that start something, so that it can end, pause and be found."""
    return make(request.param, request, site, kit)


async def ready(case, provider):
    launched = await provider.launch(case.spec, case.site.marks())
    await await_ready(provider, launched.handle, case.spec, 10, lambda text: None)
    return launched


async def seen(case, provider, status):
    """The one observation, once it has this status."""
    async with asyncio.timeout(5):
        while True:
            (one,) = await provider.observe(case.site.lineage)
            if one.status is status:
                return one
            await asyncio.sleep(0.005)


def test_launching_twice_gives_the_same_thing(case):
    async def go():
        first = await case.provider().launch(case.spec, case.site.marks())
        again = await case.provider().launch(case.spec, case.site.marks())
        assert again == first

    asyncio.run(go())


def test_two_launches_at_the_same_time_start_one_thing(case):
    async def go():
        launches = (case.provider().launch(case.spec, case.site.marks()) for _ in range(4))
        assert len(set(await asyncio.gather(*launches))) == 1

    asyncio.run(go())


def test_it_becomes_ready_and_stays_so(case):
    async def go():
        provider = case.provider()
        launched = await ready(case, provider)
        assert await provider.probe(launched.handle, case.spec) == Ready()

    asyncio.run(go())


def test_a_new_command_finds_what_an_earlier_one_launched(starting):
    async def go():
        marks = starting.site.marks()
        launched = await starting.provider().launch(starting.spec, marks)
        provider = starting.provider()
        (one,) = await provider.observe(starting.site.lineage)
        assert (one.address, one.handle, one.url) == (marks.address, launched.handle, launched.url)
        assert (one.status, one.provider, one.why) == (LiveStatus.RUNNING, provider.name, "")

    asyncio.run(go())


def test_another_lineage_sees_nothing(case):
    async def go():
        provider = case.provider()
        await provider.launch(case.spec, case.site.marks())
        assert await provider.observe("another") == []

    asyncio.run(go())


def test_replicas_are_different_things(starting):
    async def go():
        provider, marks = starting.provider(), starting.site.marks()
        second = replace(marks, address=replace(marks.address, replica=1))
        one, two = await asyncio.gather(*(provider.launch(starting.spec, m) for m in (marks, second)))
        assert one.handle != two.handle
        assert one.url != two.url
        assert len(await provider.observe(starting.site.lineage)) == 2

    asyncio.run(go())


def test_stopping_ends_it_and_stopping_again_is_success(starting):
    async def go():
        provider = starting.provider()
        launched = await ready(starting, provider)
        await provider.stop(launched.handle, 5)
        assert await provider.observe(starting.site.lineage) == []
        assert isinstance(await provider.probe(launched.handle, starting.spec), Failed)
        await starting.provider().stop(launched.handle, 5)

    asyncio.run(go())


def test_a_stopped_thing_can_be_launched_again(starting):
    async def go():
        provider = starting.provider()
        first = await ready(starting, provider)
        await provider.stop(first.handle, 5)
        second = await ready(starting, provider)
        assert second.handle != first.handle
        await provider.stop(first.handle, 5)  # the old handle reaches nobody
        assert await provider.probe(second.handle, starting.spec) == Ready()

    asyncio.run(go())


def test_stopping_what_never_was_is_success(case):
    async def go():
        for handle in ("", "nonsense", "1.1.00000000", "external:nowhere", "fake-99", "local/c5ff/created"):
            await case.provider().stop(handle, 0)
            assert await case.provider().logs(handle, 5) == ""

    asyncio.run(go())


def test_a_crash_is_seen_and_launching_again_clears_the_remains(starting):
    async def go():
        provider = starting.provider()
        dead = await ready(starting, provider)
        starting.crash(dead)
        one = await seen(starting, provider, LiveStatus.EXITED)
        assert one.handle == dead.handle
        assert one.why
        assert isinstance(await provider.probe(dead.handle, starting.spec), Failed)
        fresh = await ready(starting, provider)
        assert fresh.handle != dead.handle
        (one,) = await provider.observe(starting.site.lineage)
        assert (one.handle, one.status) == (fresh.handle, LiveStatus.RUNNING)

    asyncio.run(go())


def test_a_crashed_thing_that_was_stopped_is_reported_no_more(starting):
    async def go():
        provider = starting.provider()
        dead = await ready(starting, provider)
        starting.crash(dead)
        await seen(starting, provider, LiveStatus.EXITED)
        await provider.stop(dead.handle, 5)
        assert await provider.observe(starting.site.lineage) == []

    asyncio.run(go())


def test_a_paused_thing_is_neither_ready_nor_gone_and_can_be_stopped(starting):
    async def go():
        provider = starting.provider()
        launched = await ready(starting, provider)
        starting.pause(launched)
        await seen(starting, provider, LiveStatus.PAUSED)
        assert not isinstance(await provider.probe(launched.handle, starting.spec), Ready | Failed)
        await provider.stop(launched.handle, 5)
        assert await provider.observe(starting.site.lineage) == []

    asyncio.run(go())


def test_the_log_is_there_while_it_runs_and_has_at_most_the_lines_asked_for(starting):
    async def go():
        provider = starting.provider()
        launched = await ready(starting, provider)
        assert len((await provider.logs(launched.handle, 1)).splitlines()) == 1
        assert await provider.logs(launched.handle, 0) == ""

    asyncio.run(go())


def test_fake_failures_come_where_the_script_says(kit, site):
    async def go():
        world = FakeWorld()
        provider, marks, spec = FakeProvider(world), site.marks(), FAKE
        world.fail("launch", kit.address, 1, Fault(TransientError("lost"), late=True))
        world.fail("stop", kit.address, 1, Fault(TransientError("busy")))
        world.behave(kit.address, Behaviour(ready_after=2, dies_after=4))
        with pytest.raises(TransientError, match="lost"):
            await provider.launch(spec, marks)
        launched = await provider.launch(spec, marks)
        assert world.effects == [("launch", str(kit.address))]
        kinds = [type(await provider.probe(launched.handle, spec)).__name__ for _ in range(5)]
        assert kinds == ["Starting", "Starting", "Ready", "Ready", "Failed"]
        with pytest.raises(TransientError, match="busy"):
            await provider.stop(launched.handle, 0)
        await provider.stop(launched.handle, 0)
        assert world.effects[-1] == ("stop", str(kit.address))

    asyncio.run(go())
