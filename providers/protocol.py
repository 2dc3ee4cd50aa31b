"""The interface between the runtime and a kind of world, and the two kinds of error it may raise.

Every method may be called again after a crash, in any order, with the same arguments; the docstrings name
the repeat or race that each one settles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import Spec
from servestate.planner.live import Observation


@dataclass(frozen=True, slots=True)
class Marks:
    """The ownership marks a launched thing wears, by which it is found even when state forgot it.

    `generation` is the state serial at which the launch was intended, `op` the id of the journalled intent.
    """

    lineage: str
    address: InstanceAddress
    generation: int
    op: str


@dataclass(frozen=True, slots=True)
class Launched:
    """What a launch gave: the provider's immutable identity of the thing and where it answers."""

    handle: str
    url: str


@dataclass(frozen=True, slots=True)
class Starting:
    """Not ready yet; `progress` is a short line for people ("loading weights"), may be empty."""

    progress: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """Proved ready by an answer of the very thing that was launched."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Will never get ready; `why` names the cause and holds the last log lines."""

    code: str
    why: str


Readiness = Starting | Ready | Failed


class TransientError(Exception):
    """May go away by itself: the caller may try again."""


class PermanentError(Exception):
    """Will not go away by itself. `code` is the diagnostic code, `fix` what to do about it."""

    def __init__(self, code: str, what: str, fix: str = "") -> None:
        self.code = code
        self.what = what
        self.fix = fix
        super().__init__(f"{code} {what}")


class Provider(Protocol):
    """One kind of world. Methods raise TransientError or PermanentError and nothing else of their own."""

    @property
    def name(self) -> str:
        """The name by which specs refer to it."""

    async def observe(self, lineage: str) -> list[Observation]:
        """Everything that wears the marks of `lineage`, what state forgot and what has exited included.
        Never reports a stranger: a reused pid, another lineage, a thing with a similar name."""

    async def launch(self, spec: Spec, marks: Marks) -> Launched:
        """Start it. The same address twice gives the same handle while the first is alive, so a retry after
        a lost answer or a crash starts nothing; the remains of a dead one are cleared first."""

    async def probe(self, handle: str, spec: Spec) -> Readiness:
        """One look; never blocks long. Settles the race between a thing that dies and a port that
        somebody else then answers on: only the launched thing itself can be Ready."""

    async def stop(self, handle: str, grace_s: float) -> None:
        """End it and everything it started: asked first, killed after `grace_s` seconds. Already gone, or
        the identity now belonging to a stranger, is success and touches nothing."""

    async def logs(self, handle: str, tail: int) -> str:
        """Its last `tail` lines of output, "" when there is none; works after it ended."""
