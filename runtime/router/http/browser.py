"""Requests that a browser was talked into by somebody else's page.

A page can reach listeners on this machine, by a name of its own that resolves to 127.0.0.1, or by a plain
form. What it cannot do is choose Host freely, or leave out what the browser says of it.
"""

from __future__ import annotations

from ipaddress import ip_address

from servestate.runtime.router.http.errors import PERMISSION_DENIED, Failure, Refused
from servestate.runtime.router.http.heads import RequestHead

_OF_THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "::1"})


def own_names(host: str) -> frozenset[str]:
    """What a listener on `host` may be called besides the names that are configured."""
    return _OF_THIS_MACHINE if _is_every_address(host) else _OF_THIS_MACHINE | {host.lower()}


def check(head: RequestHead, own: frozenset[str], configured: frozenset[str]) -> None:
    """Raises Refused (403), which closes, unless the request names this listener and no browser sends it for
    a page of another site."""
    name = _name(head.host.decode("ascii").lower())
    if name not in own and name not in configured:
        raise _denied(
            f"the Host {name!r} is not one of this listener; names are allowed in servestate.access.hosts"
        )
    if head.foreign:
        raise _denied("requests of web pages are not taken here")


def _name(host: str) -> str:
    """The name of a Host that is known to be well formed, without brackets and port."""
    if host.startswith("["):
        return host[1 : host.index("]")]
    return host.partition(":")[0]


def _is_every_address(host: str) -> bool:
    """Whether `host` means all addresses of the machine, and so is the name of none."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def _denied(message: str) -> Refused:
    return Refused(Failure(403, PERMISSION_DENIED, message), close=True)
