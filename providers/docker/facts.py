"""What `docker inspect` says of a container, as the things we speak of. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from servestate.planner.launch import Placement
from servestate.planner.live import LiveStatus, Observation
from servestate.providers import cause
from servestate.providers.cause import Cause
from servestate.providers.docker import create, marks
from servestate.providers.labels import Worn

NEVER = "0001-01-01T00:00:00Z"
"""The time that Docker gives for what has not happened."""

CREATED = "created"
_ALIVE = {"running": LiveStatus.RUNNING, "paused": LiveStatus.PAUSED, "restarting": LiveStatus.RUNNING}


@dataclass(frozen=True, slots=True)
class Found:
    """A container that wears readable marks. `state` is Docker's word for it; `started` is when it was last
    started, "" for never; `error` is Docker's own of the last start, `code` how its program ended."""

    host: str
    id: str
    name: str
    worn: Worn
    state: str
    started: str
    url: str
    fields: tuple[tuple[str, str], ...]
    code: int = 0
    out_of_memory: bool = False
    error: str = ""

    @property
    def handle(self) -> str:
        """Its identity: a container started again is another thing, as nothing in its memory is the same."""
        return f"{self.host}/{self.id}/{self.started or CREATED}"

    @property
    def status(self) -> LiveStatus:
        """Alive or not, in our words."""
        return _ALIVE.get(self.state, LiveStatus.EXITED)

    @property
    def alive(self) -> bool:
        """Running, paused or about to be started again."""
        return self.status is not LiveStatus.EXITED

    @property
    def unstarted(self) -> bool:
        """Created, and neither started nor given up: its launch may still be going on."""
        return self.state == CREATED and not self.error

    def observation(self, provider: str, why: str = "") -> Observation:
        """What `observe` reports of it; `why` says how it ended."""
        place = Placement(self.host, self.worn.marks.placement.gpus, self.worn.marks.placement.fraction)
        address = self.worn.marks.address
        return Observation(address, provider, self.handle, self.url, self.status, why, self.fields, place)

    def why(self, log: Sequence[str], lines: int) -> Cause:
        """How it ended and the likely cause, above the last `lines` lines of its log."""
        if self.state == CREATED:
            never = "it was created but never started"
            return Cause(cause.ENDED, f"{never}: {self.error}" if self.error else never)
        if self.state == "removing":
            return Cause(cause.ENDED, "it is being removed")
        said = [*log, self.error] if self.error else log
        found = cause.ended(self.code, None, said, oom=self.out_of_memory)
        return Cause(found.code, cause.with_log(found.text, said, lines))


def read(host: str, address: str, raw: Mapping[str, Any]) -> Found | None:
    """The container on `host`, whose ports are published on `address`; None where it wears no marks that we
    could have given it."""
    labels = raw["Config"]["Labels"] or {}
    worn = marks.from_labels(host, labels)
    if worn is None:
        return None
    state = raw["State"]
    started = state.get("StartedAt", NEVER)
    return Found(
        host,
        raw["Id"],
        _name(raw),
        worn,
        state["Status"],
        "" if started == NEVER else started,
        _url(raw, worn.port, address),
        _fields(raw, labels),
        int(state.get("ExitCode", 0)),
        bool(state.get("OOMKilled")),
        state.get("Error", ""),
    )


def image(reference: str, raw: Mapping[str, Any]) -> create.Image:
    """What creating a container needs to know of an inspected image."""
    settings = raw.get("Config") or {}
    entrypoint, command = settings.get("Entrypoint") or (), settings.get("Cmd") or ()
    return create.Image(reference, raw["Id"], settings.get("User", ""), tuple(entrypoint), tuple(command))


def parse_handle(handle: str) -> tuple[str, str, str] | None:
    """Host, container id and start time ("" for never) of a handle; None for what is none of ours."""
    host, separator, rest = handle.rpartition("/")
    started = rest
    host, other, container = host.rpartition("/")
    if not (separator and other and host and container and started):
        return None
    return host, container, "" if started == CREATED else started


def _name(raw: Mapping[str, Any]) -> str:
    return str(raw["Name"]).removeprefix("/")


def _url(raw: Mapping[str, Any], port: int, address: str) -> str:
    """Where it answers; "" where it has ended, as Docker gives a port to what runs only."""
    shown = f"[{address}]" if ":" in address else address
    bindings = (raw["NetworkSettings"].get("Ports") or {}).get(f"{port}/tcp") or ()
    return next((f"http://{shown}:{binding['HostPort']}" for binding in bindings), "")


def _cpus(limits: Mapping[str, Any]) -> float:
    """The bound in cores, which may be given in either of two ways; 0 for none."""
    period = limits.get("CpuPeriod") or 100_000
    return float((limits.get("NanoCpus") or 0) / 1e9 or (limits.get("CpuQuota") or 0) / period)


def _fields(raw: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What only somebody else can have changed since it was created, by name."""
    limits = raw["HostConfig"]
    networks = raw["NetworkSettings"].get("Networks") or {}
    found = {
        "name": _name(raw),
        "image": raw["Image"],
        "memory": limits.get("Memory") or 0,
        "memory_swap": limits.get("MemorySwap") or 0,
        "cpus": _cpus(limits),
        "pids": limits.get("PidsLimit") or 0,
        "restart": (limits.get("RestartPolicy") or {}).get("Name") or "no",
        "networks": ",".join(sorted(networks)),
        "user": raw["Config"].get("User", ""),
        "read_only": bool(limits.get("ReadonlyRootfs")),
        "labels": marks.digest(labels),
    }
    return tuple(
        sorted((name, f"{value:g}" if name == "cpus" else str(value)) for name, value in found.items())
    )
