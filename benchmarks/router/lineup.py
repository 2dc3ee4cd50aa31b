"""The targets of one run, started side by side, each with its own pair of engines' stand-ins before it."""

from __future__ import annotations

import os
import resource
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
_READY_WITHIN_S = 60.0
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
    """All that runs. `absent` says of each peer that does not take part why."""

    client: Client
    engines: tuple[Pinned, Pinned]
    ports: tuple[int, int]
    targets: tuple[Target, ...]
    absent: dict[str, str]

    def direct(self, size: int, stream: bool = False, words: str = "") -> bytes:
        """The request as the first engine gets it without anybody between."""
        return request_of(Launch(()), body_of(size, Launch(()).model, stream, words))


def installed_in() -> Path:
    """Where `peers.sh` puts what it installs."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SERVESTATE_PEERS") or Path(cache) / "servestate-peers")


@contextmanager
def bench(peers: Sequence[Peer]) -> Iterator[Bench]:
    """Everything built and started; ended with the block. This process moves to the load's core."""
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_OPEN_FILES, hard), hard))
    with tempfile.TemporaryDirectory(prefix="router-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        client = Client(build(HERE / "load.c", folder), folder)
        engine = build(HERE / "upstream.c", folder)
        ports = (free_port(), free_port())
        engines = tuple(_engine(stack, engine, port, folder) for port in ports)
        absent: dict[str, str] = {}
        targets = []
        for peer in peers:
            found = _target(stack, peer, folder, ports, client)
            if isinstance(found, Target):
                targets.append(found)
            else:
                absent[peer.name] = found
        yield Bench(client, (engines[0], engines[1]), ports, tuple(targets), absent)


def _engine(stack: ExitStack, program: Path, port: int, folder: Path) -> Pinned:
    engine = stack.enter_context(started(LOAD_CORE, (str(program), str(port)), folder / f"engine-{port}.log"))
    wait_for(port, engine, 5)
    return engine


def _target(
    stack: ExitStack, peer: Peer, folder: Path, engines: tuple[int, int], client: Client
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
        wait_for(place.port, process, _READY_WITHIN_S)
        _first_answer(client, launch, place.port, process)
    except TimeoutError as error:
        process.end()
        return str(error)
    return Target(peer, launch, place.port, process, time.monotonic() - began, process.rss_mib())


def _first_answer(client: Client, launch: Launch, port: int, process: Pinned) -> None:
    """Ask until it answers: a router that listens may not know yet that its engines are well. Raises
    TimeoutError with the last refusal."""
    request = request_of(launch, body_of(256, launch.model))
    end = time.monotonic() + _READY_WITHIN_S
    while True:
        tried = client.requests(port, request, 0.05, process, connections=1)
        if tried.count and not tried.failed:
            return
        if time.monotonic() > end:
            raise TimeoutError(f"does not answer 200: {tried.why or 'no answer'}")
        time.sleep(0.1)
