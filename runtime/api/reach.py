"""Which hosts a request may have the router send to: whoever makes an endpoint chooses its URLs, and the
router stands where that caller may not."""

from __future__ import annotations

from servestate.planner.access import Caller, Right
from servestate.planner.launch import ExternalSpec
from servestate.planner.resolve import Resolved
from servestate.planner.spec.hosts import host_of
from servestate.planner.state import EndpointRecord
from servestate.runtime.api.call import invalid
from servestate.runtime.api.desk import Desk
from servestate.runtime.router.guards.egress import Egress, Forbidden, check_address


def check_hosts(desk: Desk, caller: Caller, found: Resolved, record: EndpointRecord | None) -> None:
    """Internal hosts are for those who may also apply bundles, and where nobody is told apart. What the
    endpoint has already (`record`), and what the site allows, may stay. Raises Refusal.

    Only what is written is judged here; where a name leads is checked when the router connects.
    """
    if desk.keyring.open or caller.may(Right.APPLY):
        return
    policy = Egress.of([*desk.source.site().router.egress.allow, *_hosts_of(desk, record)])
    specs = [entity.spec for endpoint in found.endpoints for entity in endpoint.entities]
    for spec in specs:
        host = host_of(spec.url) if isinstance(spec, ExternalSpec) else ""
        if host and not _may_be_written(host, policy):
            raise invalid(
                f"the host {host[:60]!r} is internal, and not one that requests may name; "
                "fix: add it to servestate.router.egress.allow"
            )


def _may_be_written(host: str, policy: Egress) -> bool:
    """Whether the host is a global address, allowed by name or address, or another name."""
    name = host.lower().rstrip(".")
    if name in policy.names or name == "localhost":
        return name in policy.names
    try:
        check_address(host, policy.networks)
    except Forbidden:
        return False
    except ValueError:  # another name
        return True
    return True


def _hosts_of(desk: Desk, record: EndpointRecord | None) -> list[str]:
    """The hosts that the endpoint's entities are at."""
    instances = desk.view.state().instances
    addresses = [a for target in record.targets for a in target.instances] if record is not None else []
    specs = [instances[address].spec for address in addresses if address in instances]
    return [host for spec in specs if isinstance(spec, ExternalSpec) and (host := host_of(spec.url))]
