"""Sites whose entities are containers, driven by the real command line, and what is asked of the outcome."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import docker
import pytest
import yaml
from docker.errors import APIError, NotFound
from docker.models.containers import Container

from servestate.providers.docker import marks
from servestate.providers.docker.facts import parse_handle
from tests.cli.harness import Conversation, Endpoints, Result, Site, bundle, local
from tests.cli.sweep import AT_ONCE
from tests.docker.engine import LABEL, machine_socket

T = TypeVar("T")

MODEL = "demo.echo"
"""The model of `bundle`."""

PAIR: Endpoints = {"e": {"a": local("1", 90), "b": local("1", 10)}}
"""Two entities of one endpoint."""

_ANSWER = """\
n=0
while read -r name value; do
  case $name in
    ?) break ;;
    [Cc]ontent-[Ll]ength:) n=${value%?} ;;
  esac
done
[ $n -eq 0 ] || head -c $n > /dev/null
body='{"object": "chat.completion", "model": "m", "choices": [{"index": 0, "finish_reason": "stop",
"message": {"role": "assistant", "content": "hello"}}]}'
printf 'HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\nconnection: close\\r\\n'
printf 'content-length: %d\\r\\n\\r\\n%s' ${#body} "$body"
"""

# busybox's httpd takes no POST; its nc starts this for every connection. It may not buffer what it reads: the
# shell reads byte by byte, so that head finds the whole body.
CHAT_ARGV = ["nc", "-ll", "-p", "{port}", "-e", "sh", "-c", _ANSWER]
"""With the image `tiny`: every request is answered with a chat completion."""


def image_of(image: str, **settings: Any) -> dict[str, Any]:
    """A model version that is a container of that image, small enough to have dozens of them."""
    limits = {"memory": "128MiB", "pids": 64, "cpus": 1.0}
    return {
        "engine": "command",
        "image": image,
        "container": {**limits, **settings.pop("container", {})},
        **settings,
    }


@dataclass
class ContainerSite(Site):
    """A folder with a bundle whose workload type CPU means containers. `client` speaks to the engine that the
    site's containers run on, `url` is the engine's as the site calls it."""

    client: docker.DockerClient = field(kw_only=True)
    url: str = field(default_factory=lambda: f"unix://{machine_socket()}", kw_only=True)
    cache: str = field(default_factory=lambda: f"servestate-test-{uuid.uuid4().hex[:12]}", kw_only=True)

    def contain(
        self,
        endpoints: Endpoints,
        versions: Mapping[str, Mapping[str, Any]],
        task: str = "",
        docker: Mapping[str, Any] | None = None,
        workload: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Write a bundle of containers. `docker` and `workload` are added to the provider and to CPU."""
        document = yaml.safe_load(bundle(endpoints, versions, **more))
        site = document["servestate"]
        site["models"][MODEL]["task"] = task
        given = dict(docker or {})
        reached = {} if "hosts" in given else {"url": self.url}
        site["providers"] = {"docker": {**reached, "cache": self.cache, **given}}
        site["workload_types"] = {"CPU": {"provider": "docker", **(workload or {})}}
        self.write(yaml.safe_dump(document, sort_keys=False))

    @property
    def lineage(self) -> str:
        return self.state().lineage

    def containers(self) -> list[Container]:
        """All of this lineage by their labels, dead ones too, by address. Owes nothing to the provider."""
        if not self.lineage:
            return []
        worn = {"label": f"{marks.LINEAGE}={self.lineage}"}
        found = self.client.containers.list(all=True, filters=worn, ignore_removed=True)
        return sorted(found, key=lambda one: str(one.labels.get(marks.ADDRESS)))

    def container(self, entity: str) -> Container:
        """The only one of an entity, `ENDPOINT/ENTITY`."""
        (found,) = [one for one in self.containers() if entity_of(one) == entity]
        return found

    def recorded(self) -> set[str]:
        """The ids of the containers that are in the state."""
        handles = [
            parse_handle(i.handle) for i in self.state().instances.values() if i.spec.provider == "docker"
        ]
        assert all(handles), handles
        return {found[1] for found in handles if found is not None}

    def serve(self) -> Conversation:
        """Start the router with its controller, and wait until it answers."""
        router = self.watch("serve")
        router.wait_for("servestate: routing on ")
        return router

    def clean_up(self) -> None:
        """See `Site.clean_up`; the containers and the volume too."""
        super().clean_up()
        if self.database.exists():
            for one in self.containers():
                with suppress(NotFound):
                    one.remove(force=True, v=True)
        with suppress(NotFound):
            self.client.volumes.get(self.cache).remove()


def entity_of(container: Container) -> str:
    """`ENDPOINT/ENTITY` of a labelled container."""
    return str(container.labels[marks.ADDRESS]).partition("@")[0]


def running(containers: Sequence[Container]) -> list[str]:
    """The addresses of those that live, paused or not."""
    alive = [one for one in containers if one.status in ("running", "paused", "restarting")]
    return [str(one.labels[marks.ADDRESS]) for one in alive]


def unclaimed(client: docker.DockerClient) -> set[str]:
    """The ids of all containers that wear nobody's mark: neither of a state nor of a test.

    What other tests run meanwhile wears marks, or goes soon, as the steps of an image's build do; what a test
    of ours loses does neither.
    """
    listed = client.api.containers(all=True)
    return {one["Id"] for one in listed if not {marks.LINEAGE, LABEL} & set(one["Labels"] or ())}


def entities(endpoints: Endpoints) -> list[str]:
    """`ENDPOINT/ENTITY` of every entity that is a container."""
    return sorted(f"{name}/{e}" for name, es in endpoints.items() for e in es if "entity_name" in es[e])


def check_converged(site: ContainerSite, wanted: Endpoints) -> None:
    """What runs is what is wanted and what is recorded, once each; a further plan finds nothing to do."""
    plan = site.run("plan", "--detailed-exitcode")
    assert plan.code == 0, (plan.out, plan.err)
    found = site.containers()
    assert [entity_of(one) for one in found] == entities(wanted)
    assert {one.status for one in found} <= {"running"}
    assert {one.id for one in found} == site.recorded()
    assert site.integrity() == "ok"
    for name, es in wanted.items():
        assert [t.entity for t in site.state().endpoints[name].targets] == list(es)


def check_no_copies(site: ContainerSite) -> None:
    """No address is alive twice."""
    twice = [address for address, count in Counter(running(site.containers())).items() if count > 1]
    assert not twice, f"alive twice: {twice}"


def failed(result: Result, *said: str, code: int = 1) -> None:
    """It failed for a person to understand: the exit code, these words, no traceback."""
    text = result.out + result.err
    assert result.code == code, text
    assert "Traceback" not in text, text
    for words in said:
        assert words in text, text


def on_sites(
    client: docker.DockerClient, folder: Path, cases: Sequence[T], work: Callable[[ContainerSite, T], object]
) -> None:
    """Do `work` on each case in a site of its own, a few at once. All of them have to succeed."""

    def one(numbered: tuple[int, T]) -> str:
        number, case = numbered
        site = ContainerSite(folder / f"site{number}", client=client)
        try:
            work(site, case)
            return ""
        except (AssertionError, subprocess.TimeoutExpired, APIError) as error:
            return f"{case}: {error}"
        finally:
            site.clean_up()
            shutil.rmtree(site.folder, ignore_errors=True)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        failures = [failure for failure in pool.map(one, enumerate(cases)) if failure]
    if failures:
        pytest.fail(f"{len(failures)} of {len(cases)}:\n" + "\n\n".join(failures), pytrace=False)


def processes_of(container: Container) -> Iterator[Path]:
    """The folders below /proc of the container's first process and of all its descendants."""
    container.reload()
    queue = [Path(f"/proc/{container.attrs['State']['Pid']}")]
    while queue:
        found = queue.pop()
        yield found
        children = (found / "task" / found.name / "children").read_text().split()
        queue += [Path("/proc") / child for child in children]
