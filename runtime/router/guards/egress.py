"""Where connections to external entities may go: what the address is decides, never how it is written.

The name is resolved once per connection, every address of the answer is checked, and it is a checked address
that is connected to; the name stays what the certificate must be for. A name that answers otherwise the next
time, or a numeric spelling that only a resolver understands, therefore gains nothing.

| address                                                              | connected to                      |
| -------------------------------------------------------------------- | --------------------------------- |
| link-local, cloud metadata, "this host", multicast, broadcast        | never                             |
| any other that is not global: loopback, private, shared, reserved    | if written in the URL, or allowed |
| global                                                               | yes                               |

An IPv4 address inside an IPv6 one (mapped, compatible, 6to4, NAT64) is judged as that IPv4 address.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import cast

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NEVER: tuple[Network, ...] = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # connects to this very host on Linux
            "169.254.0.0/16",  # link-local, and the metadata of most clouds at 169.254.169.254
            "100.100.100.200/32",  # metadata: Alibaba Cloud
            "168.63.129.16/32",  # the host agent of Azure, although a global address
            "192.0.0.192/32",  # metadata: Oracle Cloud
            "224.0.0.0/4",
            "255.255.255.255/32",
            "::/128",
            "fe80::/10",
            "fd00:ec2::254/128",  # metadata: AWS
            "fd20:ce::254/128",  # metadata: Google Cloud
            "ff00::/8",
        ),
    )
)
_LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_ANYWHERE: tuple[Network, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_GLOBAL_V6 = IPv6Network("2000::/3")
"""All that is handed out as global unicast (IANA); `is_global` holds for the unassigned rest as well."""
_HOLDERS: tuple[tuple[IPv6Network, int], ...] = (
    (IPv6Network("::ffff:0:0/96"), 0),  # mapped
    (IPv6Network("::ffff:0:0:0/96"), 0),  # translated (RFC 2765)
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052)
    (IPv6Network("64:ff9b:1::/48"), 0),  # NAT64 of one's own (RFC 8215)
    (IPv6Network("2002::/16"), 80),  # 6to4
    (IPv6Network("::/96"), 0),  # compatible, deprecated
)
"""Networks whose addresses hold an IPv4 address, and how many bits stand to the right of it."""
_NEXT_AFTER_S = 2.0
"""An address that has not answered by then is left for the next one; the last has all the time there is."""


class Forbidden(OSError):
    """A connection that may not be made."""


@dataclass(frozen=True, slots=True)
class Egress:
    """What the operator allows beyond global addresses: these networks to every name, and to these names
    (lower case) every address, except those that nothing may connect to."""

    networks: tuple[Network, ...] = ()
    names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, allow: Sequence[str]) -> Egress:
        """From a list of networks in CIDR notation, addresses and host names. Raises ValueError for an entry
        that is neither."""
        networks, names = [], set()
        for entry in allow:
            if "/" in entry or _literal(entry) is not None:
                networks.append(ip_network(entry))
            elif entry:
                names.add(entry.lower().rstrip("."))
            else:
                raise ValueError("an empty entry allows nothing: write a network, an address or a host name")
        return cls(tuple(networks), frozenset(names))

    def reach(self, host: str) -> tuple[Network, ...]:
        """The networks that a connection to `host`, as the operator wrote it, may lead to although they are
        not global."""
        literal = _literal(host)
        if literal is not None:
            return (*self.networks, ip_network(_judged(literal)), ip_network(literal))
        name = host.lower().rstrip(".")
        if name in self.names:
            return _ANYWHERE
        return (*self.networks, *_LOOPBACK) if name == "localhost" else self.networks


GLOBAL_ONLY = Egress()


def check_address(ip: str, allowed: Sequence[Network]) -> None:
    """Raises Forbidden unless a connection to `ip` is fine: global, or in one of the networks `allowed`."""
    address = ip_address(ip)
    judged = _judged(address)
    if any(one in network for one in (address, judged) for network in _NEVER):
        raise Forbidden(f"{ip} is link-local, a metadata service, multicast or no address of a host")
    if _is_global(judged) or any(one in network for one in (address, judged) for network in allowed):
        return
    raise Forbidden(f"{ip} is not a global address, and no rule allows it")


async def connect(
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    policy: Egress,
) -> None:
    """Connect to `host`, resolved here and now. Raises Forbidden if one of its addresses may not be
    connected to, OSError if none answers, ValueError for a name that cannot be one."""
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    addresses = list(dict.fromkeys(cast(str, info[4][0]) for info in found))
    allowed = policy.reach(host)
    for address in addresses:
        try:
            check_address(address, allowed)
        except Forbidden as error:
            raise Forbidden(f"the host {host!r} may not be connected to: {error}") from None
    sock = await _first_to_answer(loop, addresses, port)
    try:
        await loop.create_connection(
            protocol_factory, sock=sock, ssl=tls, server_hostname=host if tls else None
        )
    except BaseException:
        sock.close()
        raise


async def _first_to_answer(
    loop: asyncio.AbstractEventLoop, addresses: Sequence[str], port: int
) -> socket.socket:
    """A socket connected to one of `addresses`, in the resolver's order. Raises the last one's OSError."""
    failure = OSError("the name has no address")
    for left, address in zip(range(len(addresses) - 1, -1, -1), addresses, strict=True):
        try:
            async with asyncio.timeout(_NEXT_AFTER_S if left else None):
                return await _socket_to(loop, address, port)
        except OSError as error:  # TimeoutError among them
            failure = error
    raise failure


async def _socket_to(loop: asyncio.AbstractEventLoop, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _literal(host: str) -> Address | None:
    """The address that `host` is in its canonical notation; `127.1`, `0x7f000001` or `017700000001` are
    names to us."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _judged(address: Address) -> Address:
    """The IPv4 address that `address` holds, or itself."""
    if isinstance(address, IPv6Address) and (holder := _holder(address)):
        return IPv4Address((int(address) >> holder[1]) & 0xFFFFFFFF)
    return address


def _holder(address: Address) -> tuple[IPv6Network, int] | None:
    if int(address) < 2:  # :: and ::1 are themselves
        return None
    return next((holder for holder in _HOLDERS if address in holder[0]), None)


def _is_global(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_V6:
        return False
    return address.is_global
