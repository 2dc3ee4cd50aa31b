"""Hosts as URLs and lists name them, and the addresses among them that are never reached. What a name leads
to is seen when somebody connects: see `router/egress.py`."""

from __future__ import annotations

import ipaddress
import re

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


def host_of(url: str) -> str:
    """The host in an http(s) URL, brackets removed; "" where there is none."""
    match = _HOST.match(url)
    return (match["literal"] or match["name"]) if match else ""
