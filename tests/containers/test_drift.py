"""T27: what somebody does to a container by hand is named by the plan and repaired by an apply; the YAML is
never edited, and what only looks like ours is left alone."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import docker
import pytest
from docker.models.containers import Container

from servestate.providers.docker import marks
from tests.containers import snapshots
from tests.containers.harness import PAIR, ContainerSite, check_converged, failed, image_of
from tests.docker.engine import Scratch

pytestmark = pytest.mark.slow

VICTIM = "e/b"


@pytest.fixture(scope="module")
def applied(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerSite]:
    """One site for all kinds of drift: each of them ends where it began, with nothing to do."""
    from tests.docker import images

    made = ContainerSite(tmp_path_factory.mktemp("drift"), client=engine)
    try:
        made.contain(PAIR, {"1": image_of(images.tiny(engine))})
        made.apply()
        yield made
    finally:
        made.clean_up()


def kill(victim: Container) -> None:
    victim.kill()
    victim.wait()


def pause(victim: Container) -> None:
    victim.pause()


def rename(victim: Container) -> None:
    victim.rename(f"{victim.name}-mine")


def change_memory(victim: Container) -> None:
    victim.update(mem_limit="64m", memswap_limit="64m")


def change_cpus(victim: Container) -> None:
    victim.client.api._post_json(
        victim.client.api._url("/containers/{0}/update", victim.id), data={"NanoCpus": 500_000_000}
    ).raise_for_status()


def change_pids(victim: Container) -> None:
    victim.client.api._post_json(
        victim.client.api._url("/containers/{0}/update", victim.id), data={"PidsLimit": 32}
    ).raise_for_status()


def change_restart_policy(victim: Container) -> None:
    victim.update(restart_policy={"Name": "on-failure", "MaximumRetryCount": 3})


def disconnect(victim: Container) -> None:
    victim.client.networks.get("bridge").disconnect(victim)


def remove(victim: Container) -> None:
    victim.remove(force=True)


def restart(victim: Container) -> None:
    victim.restart(timeout=5)


def stop(victim: Container) -> None:
    victim.stop(timeout=5)


KINDS: dict[str, Callable[[Container], None]] = {
    "killed": kill,
    "stopped": stop,
    "paused": pause,
    "renamed": rename,
    "memory-changed": change_memory,
    "cpus-changed": change_cpus,
    "pids-changed": change_pids,
    "restart-policy-changed": change_restart_policy,
    "network-disconnected": disconnect,
    "removed": remove,
    "restarted": restart,
}


@pytest.mark.parametrize("kind", KINDS)
def test_named_and_repaired(applied: ContainerSite, kind: str) -> None:
    configuration = (applied.folder / "endpoints.yaml").read_bytes()
    other, victim = applied.container("e/a").id, applied.container(VICTIM)
    KINDS[kind](victim)
    plan = applied.run("plan", "--detailed-exitcode")
    assert plan.code == 2, plan.out
    snapshots.check(plan, applied.folder, f"drift-{kind}")
    applied.apply()
    check_converged(applied, PAIR)
    assert applied.container("e/a").id == other
    assert applied.container(VICTIM).id != victim.id
    assert (applied.folder / "endpoints.yaml").read_bytes() == configuration


def test_ended_by_itself(site: ContainerSite, engine_double: str) -> None:
    """With exit code 0, as a program does that thinks it is done."""
    site.contain(PAIR, {"1": image_of(engine_double)})
    site.apply()
    victim = site.container(VICTIM)
    victim.kill("SIGTERM")
    assert victim.wait(timeout=10)["StatusCode"] == 0
    plan = site.run("plan", "--detailed-exitcode")
    snapshots.check(plan, site.folder, "drift-ended")
    site.apply()
    check_converged(site, PAIR)


@pytest.mark.parametrize("whose", ["nobody's", "another lineage's"])
def test_a_stranger_under_its_name_stays(
    site: ContainerSite, scratch: Scratch, tiny: str, whose: str
) -> None:
    """Somebody replaced it by a container of their own. That one is never touched, not even where it is in
    the way: then apply says what to do."""
    site.contain(PAIR, {"1": image_of(tiny)})
    site.apply()
    victim = site.container(VICTIM)
    name, image = victim.name, victim.image.id
    worn = dict(victim.labels) | {marks.LINEAGE: str(uuid.uuid4())} if whose != "nobody's" else {}
    victim.remove(force=True)
    stranger = scratch.run(image, "sleep", "600", name=name, labels=worn, init=True)
    plan = site.run("plan", "--detailed-exitcode")
    snapshots.check(plan, site.folder, "drift-recreated-by-a-stranger")
    site.apply()  # under the next number, and so another name
    check_converged(site, PAIR)
    site.container(VICTIM).remove(force=True)
    failed(site.run("apply", "--auto-approve"), "SS531", name, "docker rename", code=4)
    stranger.reload()
    assert stranger.status == "running"
    stranger.rename(f"{name}-theirs")
    site.apply()
    check_converged(site, PAIR)
    stranger.reload()
    assert stranger.status == "running"


def test_a_duplicate_by_hand_goes(applied: ContainerSite, scratch: Scratch) -> None:
    """`docker run` with all of our labels: one of two is ours."""
    victim = applied.container(VICTIM)
    twin = scratch.run(victim.image.id, "sleep", "600", labels=dict(victim.labels), init=True)
    plan = applied.run("plan", "--detailed-exitcode")
    assert plan.code == 2, plan.out
    snapshots.check(plan, applied.folder, "drift-duplicate")
    applied.apply()
    check_converged(applied, PAIR)
    assert applied.container(VICTIM).id == victim.id
    assert twin.id not in {one.id for one in applied.containers()}


def test_strangers_survive_a_destroy(site: ContainerSite, scratch: Scratch, tiny: str) -> None:
    """T26: similar names, some of our labels, another lineage. None is touched by applies and a destroy."""
    site.contain(PAIR, {"1": image_of(tiny)})
    site.apply()
    worn = dict(site.container(VICTIM).labels)
    foreign = worn | {marks.LINEAGE: str(uuid.uuid4())}
    partly = {marks.LINEAGE: site.lineage}
    garbled = worn | {marks.PORT: "a port"}
    strangers = [
        scratch.run(
            tiny, "sleep", "600", init=True, labels=labels, name=f"servestate-{uuid.uuid4().hex[:8]}-e-b"
        )
        for labels in ({}, foreign, partly, garbled, {marks.ADDRESS: worn[marks.ADDRESS]})
    ]
    for _ in range(3):
        site.apply()
    site.run("destroy", "--auto-approve").ok()
    for stranger in strangers:
        stranger.reload()
        assert stranger.status == "running"
    assert {one.id for one in site.containers()} <= {one.id for one in strangers}
