"""The interface between the runtime and a kind of world, and the two kinds of error it may raise.

Every method may be called again after a crash, in any order, with the same arguments; the docstrings name
the repeat or race that each one settles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import HERE, Placement, Spec
from servestate.planner.live import Observation
from servestate.planner.surroundings import Host, ImageFacts


@dataclass(frozen=True, slots=True)
class Marks:
    """The ownership marks a launched thing wears, by which it is found even when state forgot it.

    `generation` is the state serial at which the launch was intended, `op` the id of the journalled intent;
    `placement` says where it is started and what it holds there.
    """

    lineage: str
    address: InstanceAddress
    generation: int
    op: str
    placement: Placement = HERE


@dataclass(frozen=True, slots=True)
class Launched:
    """What a launch gave: the provider's immutable identity of the thing, where it answers, and the facts
    that `observe` reports as `fields` from now on unless somebody changes them."""

    handle: str
    url: str
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Starting:
    """Not ready yet; `progress` is a short line for people ("loading weights"), may be empty."""

    progress: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """Proved ready by an answer of the very thing that was launched: one token or one embedding where its
    task says what to ask, else its health path."""


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
        """One look; waits for a first answer, and for nothing else, up to a minute. Settles the race between
        a thing that dies and a port that somebody else then answers on: only the launched thing itself can be
        Ready."""

    async def stop(self, handle: str, grace_s: float) -> None:
        """End it and everything it started: asked first, killed after `grace_s` seconds. Already gone, or
        the identity now belonging to a stranger, is success and touches nothing."""

    async def logs(self, handle: str, tail: int) -> str:
        """Its last `tail` lines of output, "" when there is none; works after it ended."""


@runtime_checkable
class Surveyor(Protocol):
    """What a provider with hosts of its own also does: say what is there, before anything is changed."""

    async def hosts(self, lineage: str) -> list[Host]:
        """Its hosts with their GPUs and whoever holds those but is not of `lineage`. A host that does not
        answer is in the list and says so."""


@runtime_checkable
class ImageKeeper(Protocol):
    """What a provider that runs images also does: say what their names mean, and fetch them."""

    async def image(self, host: str, image: str, pull: str) -> ImageFacts:
        """What the image's name means on that host under the pull policy `never`, `missing` or `always`.
        Downloads nothing. Raises TransientError when the host does not answer."""

    async def pull(self, host: str, image: str, digest: str, report: Callable[[str], None]) -> None:
        """Bring the image to the host; done before is done. Raises PermanentError SS53x with the cause."""


@runtime_checkable
class Watcher(Protocol):
    """What a provider that hears of changes by itself also does; the others are looked at twice a second."""

    async def await_change(self, lineage: str) -> None:
        """Return as soon as something that wears the marks of `lineage` may have ended or changed. May
        return too early, never more than a second late. Raises TransientError when it hears nothing more."""
