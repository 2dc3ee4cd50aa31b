"""T24: kill -9 of a command at its failpoints, with real containers. T25: a Docker that says other than it
does. After one more apply nothing is orphaned, doubled or forgotten."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from servestate.planner.launch import LaunchSpec
from servestate.providers.docker import marks
from tests.cli.harness import CLI, DRIVER, Endpoints, until
from tests.cli.sweep import KILLED, check_state
from tests.containers.harness import (
    PAIR,
    ContainerSite,
    check_converged,
    check_no_copies,
    entities,
    entity_of,
    image_of,
    on_sites,
)
from tests.docker.engine import machine_socket
from tests.docker.socket_proxy import Answer, Cut, Delay, Fault, SocketProxy

pytestmark = pytest.mark.slow

KILLS = 40
"""As many as the quick run of T24 asks for."""

NOTHING: Endpoints = {}


@dataclass(frozen=True)
class Operation:
    """A command line that takes a site from one set of containers to another; `version` is the one that the
    pair has afterwards."""

    verb: str
    before: Endpoints
    after: Endpoints
    version: str = "1"


OPERATIONS = {
    "create": Operation("apply", NOTHING, PAIR),
    "replace": Operation("apply", PAIR, PAIR, version="2"),
    "destroy": Operation("destroy", PAIR, NOTHING),
}


def write(site: ContainerSite, image: str, version: str) -> None:
    """The pair as that version."""
    settings = {"1": image_of(image), "2": image_of(image, container={"pids": 48})}
    site.contain(PAIR, {"1": settings[version]}, overrides={"e": {"stop_grace_s": 1}})


def prepare(site: ContainerSite, operation: Operation, image: str) -> None:
    """Bring the site to where the operation starts."""
    write(site, image, "1")
    if operation.before:
        site.apply()
    write(site, image, operation.version)


def points_of(client: docker.DockerClient, folder: Path, image: str) -> list[tuple[str, str]]:
    """Every failpoint that each operation passes, `point#n` at the nth time."""
    found: list[tuple[str, str]] = []

    def look(site: ContainerSite, name: str) -> None:
        prepare(site, OPERATIONS[name], image)
        record = site.folder / "failpoints"
        verb = (OPERATIONS[name].verb, "--auto-approve")
        process = site.start("list_failpoints", *verb, program=DRIVER, FAILPOINTS=str(record))
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        counts: Counter[str] = Counter()
        for point in record.read_text().splitlines():
            counts[point] += 1
            found.append((name, f"{point}#{counts[point]}"))

    on_sites(client, folder, list(OPERATIONS), look)
    return sorted(found)


def check_after_kill(site: ContainerSite, operation: Operation, said: str) -> None:
    """The state is whole; one more run of the same command brings everything in order."""
    check_state(site, said)
    check_no_copies(site)
    again = site.run(operation.verb, "--auto-approve", timeout_s=120)
    assert again.code == 0, (again.out, again.err)
    if operation.after:
        check_converged(site, operation.after)
        assert _limits(site) == {48 if operation.version == "2" else 64}
    else:
        assert site.containers() == []
        assert site.recorded() == set()


def _limits(site: ContainerSite) -> set[int]:
    return {one.attrs["HostConfig"]["PidsLimit"] for one in site.containers()}


def test_forty_kills(engine: docker.DockerClient, tiny: str, tmp_path: Path, seeded: random.Random) -> None:
    points = points_of(engine, tmp_path / "points", tiny)
    assert {name for name, _ in points} == set(OPERATIONS)

    def survive(site: ContainerSite, case: tuple[str, str]) -> None:
        operation = OPERATIONS[case[0]]
        prepare(site, operation, tiny)
        process = site.start(operation.verb, "--auto-approve", program=CLI, SERVESTATE_FAILPOINT=case[1])
        out, err = process.communicate(timeout=120)
        assert process.returncode == KILLED, f"not killed: {process.returncode}\n{out}\n{err}"
        check_after_kill(site, operation, out)

    cases = points if len(points) < KILLS else seeded.sample(points, KILLS)
    on_sites(engine, tmp_path / "kills", cases, survive)


class TestNegativeControl:
    """With the intent committed after the effect (D1 taken away) a kill in between leaves a container that no
    state knows: what the kills above look for can be found."""

    @pytest.mark.parametrize(
        ("program", "orphaned"),
        [((*DRIVER, "intent_after_effect"), True), (CLI, False)],
        ids=["without", "with"],
    )
    def test_an_orphan(
        self, site: ContainerSite, tiny: str, program: tuple[str, ...], orphaned: bool
    ) -> None:
        write(site, tiny, "1")
        point = "launch.after_effect"
        process = site.start("apply", "--auto-approve", program=program, SERVESTATE_FAILPOINT=point)
        process.communicate(timeout=60)
        assert process.returncode == KILLED
        known = set(map(str, site.state().instances))
        worn = [one.labels[marks.ADDRESS] for one in site.containers() if one.status == "running"]
        assert any(address not in known for address in worn) is orphaned
        assert worn
        site.apply()  # the marks are a second net
        check_converged(site, PAIR)


@contextmanager
def proxied(site: ContainerSite, folder: Path) -> Iterator[SocketProxy]:
    """The site's Docker is a proxy of the machine's."""
    with SocketProxy(folder / "proxy.sock", machine_socket()).running() as proxy:
        site.url = proxy.host
        yield proxy


CREATE, START = "/containers/create", "/containers/.*/start$"


@pytest.mark.parametrize("late_s", [0.7, 1.5])
@pytest.mark.parametrize("call", [CREATE, START])
def test_killed_while_docker_acts(
    site: ContainerSite, socket_folder: Path, tiny: str, call: str, late_s: float
) -> None:
    """The command dies while a call of it is on the way; Docker gets it only later, during or after the next
    apply has looked."""
    with proxied(site, socket_folder) as proxy:
        write(site, tiny, "1")
        proxy.fault("POST", call, Delay(late_s))
        process = site.start("apply", "--auto-approve")
        until(lambda: proxy.count("POST", call), f"{call} is asked for")
        process.kill()
        out, _ = process.communicate(timeout=20)
        check_state(site, out)
        again = site.run("apply", "--auto-approve")
        if again.code == 3:  # the late call came in between its plan and its work, which then is none
            assert "the world has changed since it was planned" in again.err
            assert "Nothing was changed" in again.err
            again = site.run("apply", "--auto-approve")
        assert "Apply complete" in again.ok().out
        time.sleep(late_s)  # by now the late call has come
        check_no_copies(site)
        site.apply()
        check_converged(site, PAIR)


LIES: dict[str, tuple[str, str, Fault]] = {
    "create done, reply lost": ("POST", CREATE, Cut()),
    "create refused with 500": ("POST", CREATE, Answer(500, "a layer is locked")),
    "start done, reply lost": ("POST", START, Cut()),
    "start refused with 500": ("POST", START, Answer(500, "a network is busy")),
    "start said to be done": ("POST", START, Answer(204)),
    "inspection lost": ("GET", "/containers/[0-9a-f]{64}/json", Cut()),
    "removal done, reply lost": ("DELETE", "/containers/", Cut()),
    "removal refused with 500": ("DELETE", "/containers/", Answer(500, "device or resource busy")),
    "removal said to be done": ("DELETE", "/containers/", Answer(204)),
    "stop done, reply lost": ("POST", "/containers/.*/stop", Cut()),
    "stop said to be done": ("POST", "/containers/.*/stop", Answer(204)),
}


@pytest.mark.parametrize(
    ("lie", "times"),
    [
        *(pytest.param(lie, None, id=f"{lie}, always") for lie in LIES),
        *(pytest.param(lie, 1, id=f"{lie}, once") for lie in LIES if lie.startswith(("create", "start"))),
    ],
)
def test_docker_says_other_than_it_does(
    site: ContainerSite, socket_folder: Path, tiny: str, lie: str, times: int | None
) -> None:
    """While both containers are replaced. Whatever the apply makes of it, the next one converges."""
    with proxied(site, socket_folder) as proxy:
        write(site, tiny, "1")
        site.apply()
        write(site, tiny, "2")
        rule = proxy.fault(*LIES[lie], nth=times)
        told = site.run("apply", "--auto-approve", timeout_s=180)
        assert told.code in (0, 1, 4), (told.out, told.err)  # 1: it could not even look, and did nothing
        assert "Traceback" not in told.err, told.err
        assert rule.seen, f"no {rule.method} {rule.path} was asked for"
        check_no_copies(site)
        proxy.rules.clear()
        site.apply()
        check_converged(site, PAIR)
        assert _limits(site) == {48}


def test_created_and_gone_again(site: ContainerSite, socket_folder: Path, tiny: str) -> None:
    """Docker says that it is created, and it never was: nothing is recorded as running."""
    with proxied(site, socket_folder) as proxy:
        write(site, tiny, "1")
        proxy.fault("POST", CREATE, Answer(201, body={"Id": "f" * 64, "Warnings": []}), nth=None)
        told = site.run("apply", "--auto-approve", timeout_s=120)
        assert told.code == 4, told.out
        assert "Traceback" not in told.err, told.err
        assert site.containers() == []
        proxy.rules.clear()
        site.apply()
        check_converged(site, PAIR)


def test_what_is_launched_behind_a_lost_state_is_adopted(site: ContainerSite, tiny: str) -> None:
    """The state is put back to before the launch: what runs is in no state, and is taken over as it is."""
    site.contain({"idle": PAIR["e"]}, {"1": image_of(tiny)})
    site.apply()
    earlier = site.database.read_bytes()
    both = {"idle": PAIR["e"], "e": PAIR["e"]}
    site.contain(both, {"1": image_of(tiny)})
    site.apply()
    ids = {one.id for one in site.containers()}
    site.database.write_bytes(earlier)
    site.apply()
    check_converged(site, both)
    assert {one.id for one in site.containers()} == ids
    assert sorted(entity_of(one) for one in site.containers()) == entities(both)
    assert all(isinstance(i.spec, LaunchSpec) for i in site.state().instances.values())
