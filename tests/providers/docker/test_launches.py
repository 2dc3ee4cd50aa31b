"""T25, T26: launches whose answers get lost, and strangers in the way."""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import replace

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import Mount, Placement
from servestate.planner.live import LiveStatus
from servestate.providers.docker import marks
from servestate.providers.protocol import Launched, PermanentError, Ready, TransientError
from tests.docker.engine import machine_socket
from tests.docker.socket_proxy import Answer, Cut, Delay, SocketProxy

pytestmark = pytest.mark.slow

CREATE, START = "/containers/create", "/containers/[^/]+/start"
OK_CREATED = {"Id": "0" * 64, "Warnings": []}
FAULTS = {
    "create cut after it acted": ("POST", CREATE, Cut()),
    "create not let through": ("POST", CREATE, Answer(500)),
    "create said OK and made nothing": ("POST", CREATE, Answer(201, body=OK_CREATED)),
    "start cut after it acted": ("POST", START, Cut()),
    "start not let through": ("POST", START, Answer(500)),
    "start said that it is gone": ("POST", START, Answer(404, "No such container: x")),
    "the look after the start cut": ("GET", "/containers/[0-9a-f]{64}/json", Cut()),
    "the look after the start says gone": ("GET", "/containers/[0-9a-f]{64}/json", Answer(404, "No such")),
    "attach cut": ("POST", "/containers/[^/]+/attach", Cut()),
    "list cut": ("GET", "/containers/json", Cut()),
}
CASES = [(name, round_) for name in FAULTS for round_ in range(5)]


@pytest.fixture
def proxy(socket_folder):
    with SocketProxy(socket_folder / "proxy.sock", machine_socket()).running() as proxy:
        yield proxy


async def persist(place, spec, wanted, limit=6):
    """What an executor does: try again what may pass."""
    for _ in range(limit):
        try:
            return await place.provider().launch(spec, wanted)
        except TransientError:
            await asyncio.sleep(0.05)
    raise AssertionError("never")


@pytest.mark.parametrize(("name", "round_"), CASES, ids=[f"{name} {n}" for name, n in CASES])
def test_a_lost_answer_never_makes_a_second_container(name, round_, place, proxy, tiny, settle):
    """T25: 50 variations. Afterwards there is one container, it is reported, and it gets ready."""
    rng = random.Random(f"{name} {round_}")
    place.url = proxy.host
    place.secrets = {"SERVESTATE_SECRET_A__B": "x"}
    method, path, fault = FAULTS[name]
    for nth in range(1, rng.randint(1, 2) + 1):
        proxy.fault(method, path, fault, nth=nth)
    spec = place.spec(
        tiny, env={"KEY": "{{secrets/a/b}}"} if name == "attach cut" or rng.random() < 0.5 else {}
    )

    async def go():
        launched = await persist(place, spec, place.marks())
        assert isinstance(launched, Launched)
        (one,) = await place.provider().observe(place.lineage)
        assert (one.handle, one.url, one.fields) == (launched.handle, launched.url, launched.fields)
        assert await settle(place.provider(), launched.handle, spec) == Ready()

    asyncio.run(go())
    assert len(place.all()) == 1


def test_a_slow_daemon_is_waited_for(place, proxy, tiny):
    place.url = proxy.host
    proxy.fault("POST", CREATE, Delay(1.5))
    proxy.fault("POST", START, Delay(1.5))
    asyncio.run(place.provider().launch(place.spec(tiny), place.marks()))
    assert place.only().status == "running"


def test_what_was_created_and_left_is_removed_by_the_next_launch(place, tiny):
    """As after a kill between create and start."""
    wanted = place.marks()
    name = marks.container_name(place.lineage, wanted.address)
    labels = {marks.LINEAGE: place.lineage, marks.ADDRESS: str(wanted.address), marks.GENERATION: "7"}
    labels |= {marks.OP: "x", marks.NONCE: "x", marks.PORT: "8000"}
    place.client.containers.create(tiny, name=name, labels=labels)

    async def go():
        provider = place.provider()
        (left,) = await provider.observe(place.lineage)
        assert (left.status, left.why) == (LiveStatus.EXITED, "it was created but never started")
        launched = await provider.launch(place.spec(tiny), wanted)
        (one,) = await provider.observe(place.lineage)
        assert one.handle == launched.handle != left.handle

    asyncio.run(go())


def test_a_strangers_name_is_said_and_left_alone(place, scratch, tiny):
    wanted = place.marks()
    name = marks.container_name(place.lineage, wanted.address)
    for labels in ({}, {marks.LINEAGE: place.lineage}, {marks.LINEAGE: "another"}):
        stranger = scratch.run(tiny, name=name, labels=labels)
        with pytest.raises(PermanentError, match=f"SS531.*{name}.*{stranger.id[:12]}"):
            asyncio.run(place.provider().launch(place.spec(tiny), wanted))
        stranger.reload()
        assert stranger.status == "running"
        stranger.remove(force=True)


def test_strangers_are_neither_seen_nor_touched(place, scratch, tiny, settle):
    """T26: 20 that look like ours: other lineages, damaged labels, similar names."""
    wanted, spec = place.marks(), place.spec(tiny)
    name = marks.container_name(place.lineage, wanted.address)
    whole = {marks.ADDRESS: str(wanted.address), marks.GENERATION: "7", marks.OP: "x", marks.PORT: "8000"}
    kinds = [
        {**whole, marks.LINEAGE: str(uuid.uuid4()), marks.NONCE: "x"},
        {marks.LINEAGE: place.lineage},
        {**whole, marks.LINEAGE: place.lineage, marks.NONCE: "x", marks.ADDRESS: "nonsense"},
        {},
    ]
    strangers = [scratch.create(tiny, name=f"{name}-{n}", labels=kinds[n % 4]) for n in range(20)]

    async def go():
        for _ in range(5):
            provider = place.provider()
            launched = await provider.launch(spec, wanted)
            assert await settle(provider, launched.handle, spec) == Ready()
            assert [one.handle for one in await provider.observe(place.lineage)] == [launched.handle]
            await provider.stop(launched.handle, 1)
        assert await provider.observe(place.lineage) == []

    asyncio.run(go())
    for stranger in strangers:
        stranger.reload()
        assert stranger.status == "created"


@pytest.mark.parametrize(
    ("container", "code"),
    [
        ({"network": "there-is-no-such"}, "SS532"),
        ({"user": "nobody-of-this-name"}, "SS532"),
    ],
    ids=str,
)
def test_what_cannot_start_is_said_and_leaves_nothing(place, tiny, container, code):
    with pytest.raises(PermanentError, match=code):
        asyncio.run(place.provider().launch(place.spec(tiny, **container), place.marks()))
    assert place.all() == []


def test_a_missing_mount_is_said_and_not_made(place, tiny, tmp_path):
    source = tmp_path / "nowhere"
    spec = place.spec(tiny, mounts=(Mount(str(source), "/data"),))
    with pytest.raises(PermanentError, match=f"SS532.*{source}"):
        asyncio.run(place.provider().launch(spec, place.marks()))
    assert not source.exists()
    assert place.all() == []


def test_gpus_without_a_driver_are_said_and_leave_nothing(place, tiny):
    wanted = place.marks(placement=Placement(gpus=("0",)))
    with pytest.raises(PermanentError, match=r"SS512.*nvidia"):
        asyncio.run(place.provider().launch(place.spec(tiny), wanted))
    assert place.all() == []


def test_an_address_that_the_host_does_not_have_is_said(place, tiny):
    with pytest.raises(PermanentError, match=r"SS532.*address"):
        asyncio.run(place.provider(address="10.213.255.254").launch(place.spec(tiny), place.marks()))
    assert place.all() == []


def test_an_image_that_is_gone_is_said(place, tiny):
    spec = place.spec(tiny)
    gone = replace(spec, container=replace(spec.container, digest=f"sha256:{'0' * 64}"))
    with pytest.raises(PermanentError, match=r"SS530.*local"):
        asyncio.run(place.provider().launch(gone, place.marks()))


def test_the_name_of_an_image_is_never_enough(place, engine, tiny, double):
    """The name moves to another image between plan and launch."""
    name = f"servestate-test/moving:{place.lineage[:8]}"
    engine.images.get(tiny).tag(name)
    try:
        spec = place.spec(name)
        engine.images.get(double).tag(name)
        asyncio.run(place.provider().launch(spec, place.marks()))
        assert place.only().image.id == engine.images.get(tiny).id
    finally:
        engine.images.remove(name)


def test_many_addresses_at_once(place, tiny):
    async def go():
        provider, spec = place.provider(), place.spec(tiny)
        each = [place.marks(InstanceAddress("e", "m", "3f", n)) for n in range(8)]
        launched = await asyncio.gather(*(provider.launch(spec, one) for one in each for _ in range(2)))
        assert len({one.handle for one in launched}) == 8
        assert len(await provider.observe(place.lineage)) == 8

    asyncio.run(go())
