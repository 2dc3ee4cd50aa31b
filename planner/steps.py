"""The steps that a plan is made of, and nothing else. Preview, plan file and executor read the same values.

Each step holds only what it alone needs; order lives in `Node.needs`.
"""

from __future__ import annotations

from dataclasses import dataclass

from servestate.planner.address import EndpointAddress, InstanceAddress
from servestate.planner.launch import DRAIN_TIMEOUT_S, HERE, STOP_GRACE_S, ExternalSpec, LaunchSpec, Placement
from servestate.planner.state import EndpointRecord


@dataclass(frozen=True, slots=True)
class Pull:
    """Bring an image to a host, at the very digest that was planned."""

    provider: str
    host: str
    image: str
    digest: str


@dataclass(frozen=True, slots=True)
class Launch:
    """Start an instance. Its address holds the revision, so a retry finds what the first try started. The
    timings and the placement are recorded with it, see `Instance`."""

    address: InstanceAddress
    spec: LaunchSpec
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    stop_grace_s: float = STOP_GRACE_S
    placement: Placement = HERE


@dataclass(frozen=True, slots=True)
class Register:
    """Take an external entity into state; nothing is started."""

    address: InstanceAddress
    spec: ExternalSpec


@dataclass(frozen=True, slots=True)
class AwaitReady:
    """Wait until the instance proves ready, at most `timeout_s` seconds."""

    address: InstanceAddress
    timeout_s: float


@dataclass(frozen=True, slots=True)
class PublishTable:
    """Make the endpoint's routes those of `record`. Every instance in it must be ready."""

    record: EndpointRecord


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take the endpoint out of the routing table."""

    endpoint: EndpointAddress


@dataclass(frozen=True, slots=True)
class RewriteTable:
    """Write the routing table file again as state has it: the file is lost or older than the state."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Let requests in flight on an instance that has no route any more finish, at most `timeout_s`."""

    address: InstanceAddress
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """End an instance: asked first, killed after `grace_s`. Also removes what state does not know."""

    address: InstanceAddress
    provider: str
    handle: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop an endpoint, or an external instance, from state; the world is not touched."""

    address: EndpointAddress | InstanceAddress


Step = Pull | Launch | Register | AwaitReady | PublishTable | Withdraw | RewriteTable | Drain | Stop | Forget


@dataclass(frozen=True, slots=True)
class Node:
    """A step in the graph. `id` is stable from plan to plan, so a person can name it. It starts when all it
    `needs` have succeeded and all that it comes `after` have ended, whichever way: two loads on one GPU wait
    for each other, and the second still runs where the first failed."""

    id: str
    step: Step
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def endpoint_of(step: Step) -> str:
    """The endpoint that a step belongs to; "" for what is no single endpoint's."""
    match step:
        case PublishTable():
            return step.record.name
        case Withdraw():
            return step.endpoint.endpoint
        case RewriteTable() | Pull():
            return ""
        case _:
            return step.address.endpoint
