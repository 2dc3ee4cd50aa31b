"""What a target of the benchmark is: how it is found, started and asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

CHAT = "/v1/chat/completions"
MODEL = "engine"
"""What the engines' stand-in serves."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a target is set up: a folder of its own, the port it shall listen on, another for its metrics if
    it wants one, the ports of the two engines (nine of ten requests go to the first, where a target can
    split), and the folder of `peers.sh`."""

    folder: Path
    port: int
    metrics_port: int
    engines: tuple[int, int]
    installed: Path

    def url(self, engine: int) -> str:
        """The origin of engine 0 or 1."""
        return f"http://127.0.0.1:{self.engines[engine]}"

    def write(self, name: str, text: str) -> str:
        """The path of a file of the target's own with that text."""
        path = self.folder / name
        path.write_text(text)
        return str(path)


@dataclass(frozen=True, slots=True)
class Launch:
    """How a target is started, on which cores ("" = the targets'), and how a request to it looks: further
    header lines, the path, the model."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    path: str = CHAT
    model: str = MODEL
    cores: str = ""


class Peer(Protocol):
    """A kind of target, with the best settings that its documentation knows for plain relaying."""

    name: str
    about: str
    """What it does with a request beyond relaying it, for the table's reader."""

    def program(self, installed: Path) -> Path | None:
        """What is run; None where it is not installed."""

    def launch(self, place: Place) -> Launch:
        """How it is started there, in the foreground, with one worker or thread."""


def executable(path: Path) -> Path | None:
    """`path`, None where there is no such file."""
    return path if path.is_file() else None
