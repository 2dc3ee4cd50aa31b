"""What an engine is: launch spec in, command out. Nothing here touches the world."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from servestate.planner.launch import LaunchSpec


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
    """What to run: argv, variables of the engine's own, and what must hold before it is tried.

    It must stay in the foreground and serve HTTP on 127.0.0.1 at the given port; `health_path` answers 200
    once it can take requests.
    """

    argv: tuple[str, ...]
    health_path: str
    env: tuple[tuple[str, str], ...] = ()
    needs: tuple[Need, ...] = ()


class Engine(Protocol):
    """One kind of serving program."""

    def command(self, spec: LaunchSpec, port: int, base_dir: Path) -> Command:
        """The command that serves `spec` on `port`. Relative sources are looked up in `base_dir`. The same
        arguments give the same command. Raises PermanentError SS502 or SS503 for a spec it cannot run."""
