"""What a plan says of images, hosts and GPUs, and what an apply makes of it."""

from __future__ import annotations

import io
import json
import re
import secrets
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import docker
import pytest
from docker.errors import ImageNotFound
from docker.models.containers import Container

from tests.cli.harness import Endpoints, local
from tests.cli.sweep import KILLED
from tests.containers.harness import (
    PAIR,
    ContainerSite,
    check_converged,
    entity_of,
    failed,
    image_of,
    unclaimed,
)
from tests.docker.engine import OwnEngine, machine_socket
from tests.docker.registry import Registry
from tests.ports import free_port

pytestmark = pytest.mark.slow

SOLO: Endpoints = {"solo": {"only": local("1")}}
BOUNDED_S = 25
"""A Docker that is not there may cost this long and no longer, on a busy machine."""


@contextmanager
def new_image(client: docker.DockerClient, tiny: str, name: str) -> Iterator[str]:
    """An image like tiny with a layer of its own, under that name; neither is left."""
    container = client.containers.create(tiny, labels={"servestate.test": name})
    try:
        container.put_archive("/www", _archive())
        repository, _, tag = name.rpartition(":")
        made = container.commit(repository, tag, changes=f"LABEL made={secrets.token_hex(8)}")
    finally:
        container.remove()
    try:
        yield str(made.id)
    finally:
        for one in (name, str(made.id)):
            with suppress(ImageNotFound):
                client.images.remove(one, force=True)


def _archive() -> bytes:
    """A tar of one file that no other image has."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("unique")
        entry.size = 1 << 20
        archive.addfile(entry, io.BytesIO(secrets.token_bytes(entry.size)))
    return packed.getvalue()


def changes(site: ContainerSite, *arguments: str) -> dict[str, dict[str, Any]]:
    """What a plan changes, by address."""
    lines = map(json.loads, site.run("plan", "--json", *arguments).ok().out.splitlines())
    found = [line["change"] for line in lines if line["type"] == "planned_change"]
    return {change["resource"]["addr"]: change for change in found}


class TestImages:
    def test_missing_and_never_pulled(self, site: ContainerSite) -> None:
        site.contain(PAIR, {"1": image_of("servestate-test/nobody-has-this:1")})
        failed(site.run("plan", "--pull", "never"), "SS320", "e/a", "pull is never")

    def test_missing_where_no_registry_answers(self, site: ContainerSite) -> None:
        name = f"127.0.0.1:{free_port()}/nobody-has-this:1"
        site.contain(PAIR, {"1": image_of(name)})
        began = time.monotonic()
        failed(site.run("plan"), "SS320", name, "cannot be reached")
        assert time.monotonic() - began < BOUNDED_S

    def test_a_name_that_moved_is_a_replacement(self, site: ContainerSite, tiny: str) -> None:
        name = f"servestate-test/moving-{secrets.token_hex(4)}:1"
        with new_image(site.client, tiny, name) as first:
            site.contain(SOLO, {"1": image_of(name)})
            site.apply()
            assert site.container("solo/only").image.id == first
            with new_image(site.client, tiny, name) as second:
                assert changes(site)["solo/only"]["reason"] == "image_digest_moved"
                site.apply()
                check_converged(site, SOLO)
                assert site.container("solo/only").image.id == second
                site.clean_up()
            site.clean_up()

    def test_pulled_by_digest_with_progress(
        self, site: ContainerSite, local_registry: Registry, tiny: str
    ) -> None:
        name, pinned = self._published(site.client, local_registry, tiny)
        try:
            site.contain(SOLO, {"1": image_of(name)})
            plan = site.run("plan").ok()
            assert f"{name} is pulled to local (sha256:" in plan.out, plan.out
            # Dying around the pull costs nothing: an image is no instance.
            for point in ("pull.before_effect", "pull.after_effect"):
                process = site.start("apply", "--auto-approve", SERVESTATE_FAILPOINT=point)
                process.communicate(timeout=60)
                assert process.returncode == KILLED
                if point == "pull.before_effect":
                    with pytest.raises(ImageNotFound):
                        site.client.images.get(pinned)
            site.client.images.remove(pinned, force=True)
            with suppress(ImageNotFound):
                site.client.images.remove(name, force=True)
            said = site.apply("--json").out
            assert "pulling 2 of 2 layers, 0.0 of 0.0 GiB" in said, said
            check_converged(site, SOLO)
            assert f"@{pinned.partition('@')[2]}" in site.container("solo/only").attrs["Config"]["Image"]
        finally:
            site.clean_up()
            for one in (name, pinned):
                with suppress(ImageNotFound):
                    site.client.images.remove(one, force=True)

    def _published(self, client: docker.DockerClient, registry: Registry, tiny: str) -> tuple[str, str]:
        """An image that only the registry has: its name there, and its reference by digest."""
        with new_image(client, tiny, f"servestate-test/pushed-{secrets.token_hex(4)}:1") as made:
            pinned = registry.push(client, made, "pulled:1")
        return f"{registry.address}/pulled:1", pinned


class TestGpus:
    def test_none_here(self, site: ContainerSite, tiny: str) -> None:
        site.contain(SOLO, {"1": image_of(tiny)}, workload={"gpus": 1})
        failed(site.run("plan"), "solo/only", "nvidia", "NVIDIA Container Toolkit")

    def test_declared_where_there_is_no_driver(self, site: ContainerSite, tiny: str) -> None:
        """The plan believes the declaration; the launch fails with a cause, and what ran goes on."""
        site.contain(SOLO, {"1": image_of(tiny)})
        site.apply()
        old = site.container("solo/only")
        table = site.table.read_bytes()
        gpus = [{"id": str(number), "memory": "24GiB"} for number in range(2)]
        site.contain(SOLO, {"1": image_of(tiny)}, docker={"gpus": gpus}, workload={"gpus": 2})
        plan = site.run("plan").ok()
        assert re.search("on local, GPUs? 0, 1", plan.out), plan.out
        assert "peak 2 of 2 GPUs" in plan.out, plan.out
        failed(site.run("apply", "--auto-approve"), "SS512", "NVIDIA Container Toolkit", code=4)
        (left,) = site.containers()
        left.reload()
        assert (left.id, left.status) == (old.id, "running")
        assert site.table.read_bytes() == table
        site.contain(SOLO, {"1": image_of(tiny)})
        site.apply()
        check_converged(site, SOLO)
        assert site.container("solo/only").id == old.id

    def test_asked_for_more_than_declared(self, site: ContainerSite, tiny: str) -> None:
        gpus = [{"id": "0", "memory": "24GiB"}]
        site.contain(PAIR, {"1": image_of(tiny)}, docker={"gpus": gpus}, workload={"gpus": 1})
        failed(site.run("plan"), "does not fit on any host", "given to")


def test_a_docker_that_does_not_run(site: ContainerSite, tiny: str) -> None:
    """Every verb says so, soon; what is recorded stays."""
    site.contain(PAIR, {"1": image_of(tiny)})
    site.apply()
    running, serial = {one.id for one in site.containers()}, site.state().serial
    reachable, site.url = site.url, f"unix://{site.folder}/nothing.sock"
    site.contain(PAIR, {"1": image_of(tiny)})
    for verb in (
        ("plan",),
        ("apply", "--auto-approve"),
        ("status",),
        ("logs", "e/a"),
        ("destroy", "--auto-approve"),
    ):
        began = time.monotonic()
        failed(site.run(*verb), "SS500", site.url, "start it")
        assert time.monotonic() - began < BOUNDED_S
    assert ({one.id for one in site.containers()}, site.state().serial) == (running, serial)
    site.url = reachable
    site.contain(PAIR, {"1": image_of(tiny)})
    check_converged(site, PAIR)


@pytest.fixture
def there(own_engine: OwnEngine, engine: docker.DockerClient, tiny: str) -> Iterator[docker.DockerClient]:
    """A second engine that has the very same image."""
    with closing(own_engine.client()) as client:
        client.images.load(b"".join(engine.images.get(tiny).save(named=tiny)))
        yield client


class TestTwoHosts:
    def configure(self, site: ContainerSite, own: OwnEngine, tiny: str, **more: Any) -> None:
        hosts = {"here": {"url": f"unix://{machine_socket()}"}, "there": {"url": own.host}}
        site.contain(PAIR, {"1": image_of(tiny)}, docker={"hosts": hosts}, **more)

    def test_spread_restricted_and_one_down(
        self, site: ContainerSite, own_engine: OwnEngine, there: docker.DockerClient, tiny: str
    ) -> None:
        self.configure(site, own_engine, tiny)
        site.apply()
        here, other = site.containers(), self._on(there, site)
        assert sorted(entity_of(one) for one in (*here, *other)) == ["e/a", "e/b"]
        assert (len(here), len(other)) == (1, 1)
        assert site.run("plan", "--detailed-exitcode").code == 0

        self.configure(site, own_engine, tiny, overrides={"e": {"hosts": ["there"]}})
        site.apply()
        assert site.containers() == []
        assert sorted(entity_of(one) for one in self._on(there, site)) == ["e/a", "e/b"]
        assert site.run("plan", "--detailed-exitcode").code == 0
        ids = {one.id for one in self._on(there, site)}

        own_engine.kill()
        failed(site.run("plan"), 'host "there"', "start it")
        failed(site.run("apply", "--auto-approve"), 'host "there"')
        assert site.containers() == []  # nothing was moved because its host was silent
        own_engine.start()
        assert site.run("plan", "--detailed-exitcode").code == 0
        assert {one.id for one in self._on(there, site)} == ids
        site.run("destroy", "--auto-approve").ok()
        assert self._on(there, site) == []

    def test_a_new_site_on_a_host_that_is_down(
        self, site: ContainerSite, own_engine: OwnEngine, there: docker.DockerClient, tiny: str
    ) -> None:
        self.configure(site, own_engine, tiny, overrides={"e": {"hosts": ["there"]}})
        own_engine.kill()
        failed(site.run("plan"), 'host "there"')
        own_engine.start()
        site.apply()
        assert len(self._on(there, site)) == 2
        site.run("destroy", "--auto-approve").ok()

    def test_gpus_decide_where(self, site: ContainerSite, own_engine: OwnEngine, tiny: str) -> None:
        """Only planned: neither host has the GPUs that are declared."""
        hosts = {
            "here": {"url": f"unix://{machine_socket()}", "gpus": [{"id": "7", "memory": "24GiB"}]},
            "there": {"url": own_engine.host, "gpus": []},
        }
        site.contain(SOLO, {"1": image_of(tiny)}, docker={"hosts": hosts}, workload={"gpus": 1})
        assert re.search("on here, GPUs? 7", site.run("plan").ok().out)

    def _on(self, client: docker.DockerClient, site: ContainerSite) -> list[Container]:
        """The site's containers on another engine than its own."""
        worn = {"label": f"io.servestate.lineage={site.lineage}"}
        found: list[Container] = client.containers.list(all=True, filters=worn)
        return found


def test_a_container_without_marks_is_seen(engine: docker.DockerClient, tiny: str) -> None:
    """The control of what every test here ends with."""
    bare = engine.containers.create(tiny)
    try:
        assert bare.id in unclaimed(engine)
    finally:
        bare.remove()
    assert bare.id not in unclaimed(engine)
