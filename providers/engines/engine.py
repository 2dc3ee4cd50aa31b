"""What an engine is: launch spec in, command out. Nothing here touches the world."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from servestate.planner.launch import LaunchSpec, Mount
from servestate.planner.served_name import MODEL_FOLDER


@dataclass(frozen=True, slots=True)
class NeedsFile:
    """The command cannot work unless this file is there and begins with `magic`."""

    path: Path
    magic: bytes
    kind: str
    fix: str


@dataclass(frozen=True, slots=True)
class NeedsModule:
    """The command cannot work unless this Python module is installed beside servestate."""

    module: str
    fix: str


Need = NeedsFile | NeedsModule


@dataclass(frozen=True, slots=True)
class Command:
    """What to run as a process: argv, variables of the engine's own, and what must hold before it is tried.

    It must stay in the foreground and serve HTTP on 127.0.0.1 at the given port; the spec's `health_path`
    answers 200 once it can take requests.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerCommand:
    """What to run in a container of the spec's image.

    `args` follow the image's entrypoint; where there are none, the image's own command runs. `env` holds
    variables of the engine's own, never a secret. It listens on `port` on every interface of the container.
    `mounts` are what of the host it needs to see (weights), `caches` the folders below `CACHE_ROOT` that it
    writes and that outlive it. `user` is UID:GID for images that would run as root.
    """

    args: tuple[str, ...]
    port: int
    env: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    caches: tuple[str, ...] = ()
    user: str = "65534:65534"


CACHE_ROOT = "/cache"
"""Where the cache volume of a host is mounted; an engine's cache is a folder below it."""

MODEL_ROOT = MODEL_FOLDER
"""Below it are the weights of `file://` sources, read-only."""

KEY_FILE = "key.yaml"
"""How the file with the text of `Engine.key_text` is called: vLLM tells the form of a file by its suffix, the
others do not care."""


@dataclass(frozen=True, slots=True)
class FirstRequest:
    """The request whose answer proves that an engine serves: one token, or one embedding. `answer` is the key
    that the JSON object of a real answer has."""

    path: str
    body: dict[str, object]
    answer: str


class Engine(Protocol):
    """One kind of serving program."""

    def command(self, spec: LaunchSpec, port: int, base_dir: Path, key_file: Path | None) -> Command:
        """The command that serves `spec` on `port`. Relative sources are looked up in `base_dir`; `key_file`
        holds the text of `key_text`, None where there is no key. The same arguments give the same command.
        Raises PermanentError SS502 or SS503 for a spec it cannot run."""

    def container(self, spec: LaunchSpec, base_dir: Path, key_file: str | None) -> ContainerCommand:
        """The same in a container; `key_file` is its path inside. Raises PermanentError as `command`."""

    def key_text(self, key: str) -> str:
        """What the key file holds for the engine to ask for `key` in `Authorization: Bearer`; "" where it
        cannot ask for one. `planner.engine_keys.KEYED` lists the engines that can."""

    def phase(self, line: str) -> str:
        """The phase of starting that a log line tells of ("loading weights took 4.1 s"), "" for any other."""

    def first_request(self, spec: LaunchSpec) -> FirstRequest | None:
        """What to ask before it counts as ready; None where its task does not say what it would answer."""
