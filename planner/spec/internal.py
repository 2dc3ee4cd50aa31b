"""Addresses that are nobody else's business: internal ones, and those that are never reached at all."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST = re.compile(r"https?://(?:\[(?P<literal>[^\]/]*)\]|(?P<name>[^:/\[\]]*))", re.IGNORECASE)
_NEVER = tuple(map(ipaddress.ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128")))
"""Link-local addresses, and the one at which a cloud has its metadata in IPv6."""


def address_of(host: str) -> _Address | None:
    """The address that a host is written as, one of IPv4 inside one of IPv6 taken out; None for a name."""
    try:
        found = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def network_of(text: str) -> Network | None:
    """The network, or the one address, that `text` is; None where it is neither."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def is_never_reached(host: str) -> bool:
    """Whether `host` is an address at which nothing but a machine's own cloud answers."""
    address = address_of(host)
    return address is not None and any(address in network for network in _NEVER)


def is_internal(host: str) -> bool:
    """Whether `host` is `localhost` or an address that is not a public one. What another name leads to is
    seen when somebody connects."""
    address = address_of(host)
    if address is None:
        return host.rstrip(".").lower() == "localhost"
    return not address.is_global


def allows(allowed: Iterable[str], host: str) -> bool:
    """Whether a list of addresses, networks and names has `host`."""
    address = address_of(host)
    for entry in allowed:
        network = network_of(entry)
        if entry.lower() == host.lower() or (network and address is not None and address in network):
            return True
    return False


def host_of(url: str) -> str:
    """The host in an http(s) URL, brackets removed; "" where there is none."""
    match = _HOST.match(url)
    return (match["literal"] or match["name"]) if match else ""
