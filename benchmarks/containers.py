"""What containers cost: 50 of them from nothing to ready, and plans of 200 on 8 hosts.

    .venv/bin/python -m benchmarks.containers [--repeats 5] [--markdown FILE]

Start: `servestate apply` of 50 endpoints with a container of the tests' tiny image each, against `docker run`
in a shell loop, as many at once (10), with the same options and the same wait until /health answers 200. Both
on the machine's engine, interleaved; the removal is not measured. The ratio is that of each round's pair.

Plan: 200 tiny containers on 8 Docker Engines of their own (8 dockerd and containerd on this one machine, so
they share its cores; between real hosts there would be a network instead). `servestate plan` as a whole
process: nothing to do; and every container to move to declared GPUs, so that all 200 are placed. And
`make_plan` alone, in this process, on the same size with a made-up world. Needs root, as the tests do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import docker
import yaml

from servestate.planner.live import Live, LiveStatus, Observation
from servestate.planner.plan import Plan, make_plan
from servestate.planner.resolve import Resolved, resolve
from servestate.planner.state import (
    BecameReady,
    Launched,
    LaunchIntended,
    Published,
    State,
    apply_event,
)
from servestate.planner.steps import Launch, PublishTable
from servestate.planner.surroundings import Gpu, Host, ImageFacts, Surroundings
from servestate.runtime.configuration import Options, load_configuration
from tests.docker import images
from tests.docker.engine import OwnEngine, connect, machine_socket

SERVESTATE = str(Path(sys.executable).with_name("servestate"))
STARTED = 50
AT_ONCE = 10
"""As many launches at once as an apply makes (`executor.PARALLEL_EFFECTS`)."""
PLANNED, HOSTS, GPUS = 200, 8, 32
START_BAR = 1.5
PLAN_BAR_S = 1.0
MARK = "servestate.benchmark"

LOOP = f"""seq {STARTED} | xargs -P {AT_ONCE} -I % sh -c '
  id=$(docker run -d --label {MARK}=$0 --init --read-only --cap-drop ALL --user 65534:65534 \\
    --security-opt no-new-privileges --pids-limit 64 --memory 64m --memory-swap 64m --cpus 0.5 \\
    --tmpfs /tmp --tmpfs /run --log-driver local -p 127.0.0.1::8000 $1)
  url=http://$(docker port $id 8000)/health
  until curl -sfo /dev/null $url; do sleep 0.05; done
' $0 $1"""


def seconds(*command: str, cwd: Path) -> float:
    """How long a command takes. Raises if it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command[:3])} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return took


def write_bundle(
    folder: Path, image: str, count: int, settings: dict[str, Any], workload: dict[str, Any] | None = None
) -> None:
    """`count` endpoints of one container each. `settings` are those of the provider, `workload` of CPU."""
    limits = {"memory": "64MiB", "pids": 64, "cpus": 0.5}
    version = {"engine": "command", "image": image, "container": limits}
    blocks = {
        f"e{number:03}": {
            "name": f"e{number:03}",
            "config": {
                "served_entities": [{"name": "m", "entity_name": "bench.tiny", "entity_version": "1"}]
            },
        }
        for number in range(count)
    }
    site = {
        "providers": {"docker": settings},
        "workload_types": {"CPU": {"provider": "docker", **(workload or {})}},
        "models": {"bench.tiny": {"versions": {"1": version}}},
    }
    document = {"servestate": site, "resources": {"model_serving_endpoints": blocks}}
    (folder / "endpoints.yaml").write_text(yaml.safe_dump(document))


@contextmanager
def site() -> Iterator[Path]:
    """A folder that is destroyed at the end, with what it applied."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            yield folder
        finally:
            seconds(SERVESTATE, "destroy", "--auto-approve", cwd=folder)


def start_by_apply(client: docker.DockerClient, image: str) -> float:
    """Seconds of an apply of 50 new containers."""
    with site() as folder:
        write_bundle(folder, image, STARTED, {"url": f"unix://{machine_socket()}"})
        return seconds(SERVESTATE, "apply", "--auto-approve", cwd=folder)


def start_by_loop(client: docker.DockerClient, image: str) -> float:
    """Seconds of the shell loop."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as name:
        try:
            return seconds("sh", "-c", LOOP.replace("$0", mark).replace("$1", image), cwd=Path(name))
        finally:
            for one in client.containers.list(all=True, filters={"label": f"{MARK}={mark}"}):
                one.remove(force=True)


def starts(repeats: int) -> Iterator[str]:
    """The table of the starts."""
    with closing(connect()) as client:
        image = images.tiny(client)
        rounds = [(start_by_apply(client, image), start_by_loop(client, image)) for _ in range(repeats)]
    ratio = statistics.median(ours / theirs for ours, theirs in rounds)
    ours, theirs = (statistics.median(one[i] for one in rounds) for i in (0, 1))
    spread = ", ".join(f"{ours / theirs:.2f}" for ours, theirs in sorted(rounds, key=lambda r: r[0] / r[1]))
    yield f"| {STARTED} containers to ready | apply, s | docker run loop, s | ratio | bar | rounds |"
    yield "| --- | ---: | ---: | ---: | ---: | --- |"
    yield f"| {AT_ONCE} at once | {ours:.2f} | {theirs:.2f} | {ratio:.2f} | <= {START_BAR} | {spread} |"


def hosts_of(urls: Sequence[str], gpus: int) -> dict[str, Any]:
    """The provider's settings of that many hosts with declared GPUs."""
    declared = [{"id": str(number), "memory": "80GiB"} for number in range(gpus)]
    return {"hosts": {f"h{number}": {"url": url, "gpus": declared} for number, url in enumerate(urls)}}


@contextmanager
def engines(count: int) -> Iterator[list[OwnEngine]]:
    """Engines that all have the tiny image, the very same."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ss-", dir="/var/tmp")))
        with closing(connect()) as client:
            image = images.tiny(client)
            packed = b"".join(client.images.get(image).save(named=image))
        found = [stack.enter_context(OwnEngine(folder / str(number))) for number in range(count)]
        for own in found:
            with closing(own.client()) as client:
                client.images.load(packed)
        yield found


def whole_plans(repeats: int) -> Iterator[tuple[str, list[float]]]:
    """Seconds of whole `servestate plan` processes against 200 running containers."""
    with closing(connect()) as client:
        image = images.tiny(client)
    with engines(HOSTS) as found, site() as folder:
        urls = [own.host for own in found]
        write_bundle(folder, image, PLANNED, hosts_of(urls, GPUS))
        yield "apply, all new (once)", [seconds(SERVESTATE, "apply", "--auto-approve", cwd=folder)]
        quiet, moved = [], []
        for _ in range(repeats):
            write_bundle(folder, image, PLANNED, hosts_of(urls, GPUS))
            quiet.append(seconds(SERVESTATE, "plan", cwd=folder))
            write_bundle(folder, image, PLANNED, hosts_of(urls, GPUS), {"gpus": 1})
            moved.append(seconds(SERVESTATE, "plan", cwd=folder))
        write_bundle(folder, image, PLANNED, hosts_of(urls, GPUS))
        yield "servestate plan, nothing to do", quiet
        yield "servestate plan, all to GPUs", moved


def pure_plans(repeats: int) -> Iterator[tuple[str, list[float]]]:
    """Seconds of `make_plan` in a made-up world of the same size: from nothing, and with nothing to do."""
    with tempfile.TemporaryDirectory() as name:
        folder, image = Path(name), "bench/tiny:1"
        urls = [f"unix:///var/run/{number}.sock" for number in range(HOSTS)]
        write_bundle(folder, image, PLANNED, hosts_of(urls, GPUS), {"gpus": 1})
        desired = resolve(load_configuration(Options(folder, None, {})), frozenset({"docker"}))
    gpus = tuple(Gpu(str(number), 80 << 30) for number in range(GPUS))
    names = [f"h{number}" for number in range(HOSTS)]
    known = {(name, image): ImageFacts("sha256:" + "a" * 64, present=True) for name in names}
    around = Surroundings({("docker", name): Host(name, gpus) for name in names}, known)
    nothing = State(str(uuid.UUID(int=0)))
    first = make_plan(desired, nothing, Live(), around)
    state, live = carried_out(first, nothing)
    assert make_plan(desired, state, live, around).is_empty
    yield "make_plan, all new", timed(repeats, desired, nothing, Live(), around)
    yield "make_plan, nothing to do", timed(repeats, desired, state, live, around)


def timed(repeats: int, desired: Resolved, state: State, live: Live, around: Surroundings) -> list[float]:
    """Seconds of each of so many plans."""
    return [_seconds_of(lambda: make_plan(desired, state, live, around)) for _ in range(repeats)]


def _seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def carried_out(plan: Plan, state: State) -> tuple[State, Live]:
    """State and live after that plan, as if every step had succeeded."""
    seen = {}
    for node in plan.nodes:
        match node.step:
            case Launch(address=address, spec=spec, placement=placement):
                handle, url = f"{placement.host}/{address}/t", f"http://127.0.0.1:{30000 + len(seen)}"
                intended = LaunchIntended(address, spec, "op", placement=placement)
                for event in (intended, Launched(address, handle, url), BecameReady(address)):
                    state = apply_event(state, event)
                alive = LiveStatus.RUNNING
                seen[address] = Observation(address, "docker", handle, url, alive, placement=placement)
            case PublishTable(record=record):
                state = apply_event(state, Published(record))
            case _:
                continue
    return state, Live(seen, table_version=state.table_serial)


def plans(repeats: int) -> Iterator[str]:
    """The table of the plans."""
    yield f"| {PLANNED} containers, {HOSTS} hosts, {GPUS} GPUs each | median s | bar | rounds |"
    yield "| --- | ---: | ---: | --- |"
    for name, costs in (*pure_plans(repeats), *whole_plans(repeats)):
        bar = f"< {PLAN_BAR_S:g} s" if "plan" in name else ""
        rounds = ", ".join(f"{cost:.2f}" for cost in sorted(costs))
        yield f"| {name} | {statistics.median(costs):.3f} | {bar} | {rounds} |"


def report(repeats: int) -> Iterator[str]:
    """Both tables and the load of the machine, line by line."""
    yield from starts(repeats)
    yield ""
    yield from plans(repeats)
    yield ""
    yield f"{os.cpu_count()} cores; load average at the end {os.getloadavg()[0]:.1f}."


def main() -> None:
    """Measure, print, and keep the tables if asked to."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--markdown", type=Path, help="also write the tables to this file")
    arguments = flags.parse_args()
    lines = []
    for line in report(arguments.repeats):
        print(line, flush=True)
        lines.append(line)
    if arguments.markdown:
        command = f"`python -m benchmarks.containers --repeats {arguments.repeats}`"
        head = f"# What containers cost\n\nMade by {command}: medians of interleaved rounds.\n\n"
        arguments.markdown.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
