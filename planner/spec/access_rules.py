"""Rules of `servestate.access`: tokens that can be checked, and listeners that only they open to others."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

from servestate.planner.spec.characters import shorten
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.external_rules import REFERENCE_FORM, SECRET_REFERENCE
from servestate.planner.spec.report import Report
from servestate.planner.spec.site import AccessToken, Site

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}\Z")
_HINT = "make one with: servestate token"


def tokens(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Each token is somebody's, is given by hash or by reference, and stands there once. No value is shown:
    it may be a token that was written out."""
    seen: set[str] = set()
    for index, token in enumerate(site.access.tokens):
        at = ("access", "tokens", index)
        for problem, fix, field in _problems(token):
            report.error("SS197", f"token {index + 1} {problem}", fix, *at, *field)
        given = token.sha256 or token.secret
        if given and given in seen:
            report.error("SS197", f"token {index + 1} repeats an earlier one", "keep one of them", *at)
        seen.add(given)


def _problems(token: AccessToken) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    if bool(token.user_name) == bool(token.service_principal_name):
        yield "is nobody's, or two people's", "give user_name or service_principal_name", ()
    if not (token.user_name + token.service_principal_name).isprintable():
        yield "has a name with an invisible character", "keep it on one line", ()
    if bool(token.sha256) == bool(token.secret):
        yield "is given neither by hash nor by reference, or by both", f"write sha256 or secret; {_HINT}", ()
    if token.sha256 and not _SHA256.match(token.sha256):
        yield "has a sha256 that is not 64 lower-case hex digits", _HINT, ("sha256",)
    if token.secret and not SECRET_REFERENCE.match(token.secret):
        fix = f'write secret: "{REFERENCE_FORM}"; if this was the token itself, renew it'
        yield "has a secret that is not a reference", fix, ("secret",)
    try:
        token.expires_at  # noqa: B018  # its error is the finding
    except (ValueError, OverflowError):
        yield "expires at what is no moment", 'write it as "2027-01-31T00:00:00Z"', ("expires",)


def beyond_this_machine(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Whoever reaches a listener without tokens may do everything; and tokens cross the network in the clear
    unless the listener, or something in front of it, ends TLS."""
    for name in ("router", "management"):
        listener = getattr(site, name)
        if not listener.host or is_loopback(listener.host):
            continue
        what = f"{name} listens on {shorten(listener.host)}, beyond this machine,"
        if not site.access.tokens:
            fix = "listen on 127.0.0.1, or declare tokens under servestate.access.tokens"
            report.error("SS198", f"{what} and no access tokens are declared", fix, name, "listen")
        elif listener.tls is None and not listener.plaintext:
            fix = "add tls: {cert, key}; or put a proxy that ends TLS in front and set plaintext: true"
            report.error("SS198", f"{what} where tokens would be readable by others", fix, name, "listen")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on that host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def hosts(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Names without scheme and port."""
    for index, host in enumerate(site.access.hosts):
        if not _HOST.match(host):
            what = f'"{shorten(host)}" is not the name of a host'
            report.error(
                "SS199", what, "write the name alone, without scheme and port", "access", "hosts", index
            )
