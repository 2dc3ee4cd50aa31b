"""The targets of one run, started side by side, each with its own pair of engines' stand-ins before it."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.router.load import Client, body_of, build, request_of
from benchmarks.router.peer import Launch, Peer, Place
from benchmarks.router.processes import (
    LOAD_CORE,
    TARGET_CORE,
    Pinned,
    free_port,
    started,
    wait_for,
)

HERE = Path(__file__).parent
_OPEN_FILES = 20_000


@dataclass(frozen=True, slots=True)
class Target:
    """A peer that runs and has answered, `start_s` after it was started."""

    peer: Peer
    launch: Launch
    port: int
    process: Pinned
    start_s: float
    rss_mib: float

    @property
    def name(self) -> str:
        """The peer's."""
        return self.peer.name

    def request(self, size: int, stream: bool = False, words: str = "") -> bytes:
        """A chat request of that size to it."""
        return request_of(self.launch, body_of(size, self.launch.model, stream, words))


@dataclass(frozen=True, slots=True)
class Bench:
    """All that runs. `distance` is the built `distance.c`; `absent` says of each peer that does not take part
    why."""

    client: Client
    distance: Path
    engines: tuple[Pinned, Pinned]
    ports: tuple[int, int]
    targets: tuple[Target, ...]
    absent: dict[str, str]

    def distance_ns(self) -> float:
        """How long a word takes from the target's core to the load's and back, just now."""
        done = subprocess.run(
            [str(self.distance), TARGET_CORE, LOAD_CORE], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    def direct(self, size: int, stream: bool = False, words: str = "") -> bytes:
        """The request as the first engine gets it without anybody between."""
        return request_of(Launch(()), body_of(size, Launch(()).model, stream, words))


def installed_in() -> Path:
    """Where `peers.sh` puts what it installs."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SERVESTATE_PEERS") or Path(cache) / "servestate-peers")


@contextmanager
def bench(peers: Sequence[Peer], ready_within_s: float = 60.0) -> Iterator[Bench]:
    """Everything built and started; ended with the block, in which this process runs on the load's core."""
    with (
        _beside_the_load(),
        tempfile.TemporaryDirectory(prefix="router-bench-") as name,
        ExitStack() as stack,
    ):
        folder = Path(name)
        client = Client(build(HERE / "load.c", folder), folder)
        engine = build(HERE / "upstream.c", folder)
        ports = (free_port(), free_port())
        engines = tuple(_engine(stack, engine, port, folder) for port in ports)
        absent: dict[str, str] = {}
        targets = []
        for peer in peers:
            found = _target(stack, peer, folder, ports, client, ready_within_s)
            if isinstance(found, Target):
                targets.append(found)
            else:
                absent[peer.name] = found
        yield Bench(
            client,
            build(HERE / "distance.c", folder),
            (engines[0], engines[1]),
            ports,
            tuple(targets),
            absent,
        )


@contextmanager
def _beside_the_load() -> Iterator[None]:
    """This process on the load's core, with as many open files as the targets need, until the block ends."""
    cores, (soft, hard) = os.sched_getaffinity(0), resource.getrlimit(resource.RLIMIT_NOFILE)
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_OPEN_FILES, hard), hard))
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _engine(stack: ExitStack, program: Path, port: int, folder: Path) -> Pinned:
    engine = stack.enter_context(started(LOAD_CORE, (str(program), str(port)), folder / f"engine-{port}.log"))
    wait_for(port, engine, 5)
    return engine


def _target(
    stack: ExitStack, peer: Peer, folder: Path, engines: tuple[int, int], client: Client, within_s: float
) -> Target | str:
    """The peer started and tried, or why it cannot be measured. One that fails must not end the run."""
    installed = installed_in()
    if peer.program(installed) is None:
        return "not installed"
    own = folder / peer.name.replace(" ", "-")
    own.mkdir()
    place = Place(own, free_port(), free_port(), engines, installed)
    launch = peer.launch(place)
    began = time.monotonic()
    process = stack.enter_context(
        started(launch.cores or TARGET_CORE, launch.command, own / "log", launch.environment)
    )
    try:
        wait_for(place.port, process, within_s)
        _first_answer(client, launch, place.port, process, within_s)
    except TimeoutError as error:
        process.end()
        return str(error)
    return Target(peer, launch, place.port, process, time.monotonic() - began, process.rss_mib())


def _first_answer(client: Client, launch: Launch, port: int, process: Pinned, within_s: float) -> None:
    """Ask until it answers: a router that listens may not know yet that its engines are well. Raises
    TimeoutError with the last refusal."""
    request = request_of(launch, body_of(256, launch.model))
    end = time.monotonic() + within_s
    while True:
        tried = client.requests(port, request, 0.05, process, connections=1)
        if tried.count and not tried.failed:
            return
        if time.monotonic() > end:
            raise TimeoutError(f"does not answer 200: {tried.why or 'no answer'}")
        time.sleep(0.1)
