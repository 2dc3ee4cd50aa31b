"""Hostile credentials: all are told the same, and nothing of them is written down anywhere."""

from __future__ import annotations

import base64
import random
import string
import time
from collections.abc import Iterator
from itertools import islice

import pytest

from tests.api.callers import ADMIN, KNOWN, SHARED
from tests.api.guarded import API, Guarded
from tests.api.wire import connected

CHAT = b'{"messages": [{"role": "user", "content": "x"}]}'
CANARY = "c4n4ry"
"""Stands in every credential, so that it can be looked for afterwards."""

SQL = [
    "' OR '1'='1",
    "' OR 1=1 --",
    '" OR ""="',
    "'; DROP TABLE updates; --",
    "') UNION SELECT digest FROM plans --",
    "1; SELECT pg_sleep(10)",
    "'||pg_sleep(10)--",
    "1' AND SLEEP(5)#",
    "'; ATTACH DATABASE '/tmp/x' AS y; --",
    "admin'--",
    "\\'; SELECT load_extension('x'); --",
    "%27%20OR%201=1",
]
ODD = [
    "../../../../etc/passwd",
    "{{secrets/demo/key}}",
    "${jndi:ldap://127.0.0.1/x}",
    "{{7*7}}",
    "$(id)",
    "`id`",
    "<script>alert(1)</script>",
    "null",
    "undefined",
    "true",
    "[]",
    "{}",
    "a" * 4096,
    "=" * 64,
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
    "\x80\xff\xfe",
    "d\xf6se t\xf6ken",
]
NO_HTTP = ["\x00", "a\x00b", "a\x0bb\x01", "\x7f", "a\r b", "a\nb", "x" * (40 << 10), "y" * (1 << 20)]
"""Values that no header can have; the parser says so."""

_SCHEMES = [
    "Bearer",
    "bearer",
    "BEARER",
    "BeArEr",
    "Basic",
    "Token",
    "Digest",
    "Negotiate",
    "",
    "Bearer\tx",
    "B",
]


def near(token: str, random: random.Random) -> str:
    """A token that is almost that one."""
    at = random.randrange(len(token))
    return random.choice(
        (
            token[:at] + random.choice(string.ascii_letters) + token[at:],
            token[:at] + token[at + 1 :],
            token.upper(),
            f"{token}\x00"[: len(token)] + "=",
            token[::-1],
            f'"{token}"',
        )
    )


def credentials(random: random.Random) -> Iterator[list[str]]:
    """Header lines without end, none of which lets anybody in."""
    while True:
        kind = random.randrange(8)
        if kind == 0:
            value = random.choice(SQL) + str(random.randrange(10**6))
        elif kind == 1:
            value = random.choice(ODD)
        elif kind == 2:
            value = near(random.choice(KNOWN).token, random)
        elif kind == 3:
            value = "".join(random.choices(string.printable[:94], k=random.randrange(1, 200)))
        elif kind == 4:
            value = base64.b64encode(random.choice(SQL).encode()).decode()
        elif kind == 5:  # a good one twice, or beside another: nobody may choose which counts
            good = f"Authorization: Bearer {ADMIN.token}"
            yield random.choice(
                ([good, good], [good, f"authorization: Bearer {CANARY}"], [f"{good}, {CANARY}"])
            )
            continue
        elif kind == 6:  # good, but not said in the one way
            scheme = random.choice(("Basic", "Token", "Bearer Bearer", "Bearer:", "bearer,", "", "Bear"))
            yield [f"Authorization: {scheme} {ADMIN.token}"]
            continue
        else:  # good, but in other places
            field = random.choice(
                ("X-Api-Key", "Proxy-Authorization", "Cookie", "X-Authorization", "Api-Key")
            )
            yield [f"{field}: Bearer {ADMIN.token}"]
            continue
        yield [f"Authorization: {random.choice(_SCHEMES)} {CANARY}{value}"]


TARGETS = {
    "management": [("GET", API, b""), ("PUT", f"{API}/{SHARED}/config", b"[]"), ("POST", API, b"{}")],
    "router": [],
}
QUERIES = [
    ("POST", f"/serving-endpoints/{SHARED}/invocations", CHAT),
    ("GET", "/serving-endpoints/models", b""),
]


def attacked(
    site: Guarded, listener: str, lines: Iterator[list[str]]
) -> tuple[set[tuple[int, bytes]], list[float]]:
    """What was said to all of them, and how long each took, in seconds."""
    said, took = set(), []
    targets = TARGETS[listener] + QUERIES
    with connected(site.server.url if listener == "management" else site.server.router) as connection:
        for number, fields in enumerate(lines):
            began = time.perf_counter()
            got = connection.ask(*targets[number % len(targets)], *fields)
            took.append(time.perf_counter() - began)
            said.add((got.status, got.body))
    return said, took


def check_nothing_written(site: Guarded) -> None:
    """No credential is in anything that was written: output, audit log, databases, anything else."""
    told = [CANARY, "pg_sleep", "DROP TABLE", "UNION SELECT", "etc/passwd", ADMIN.token]
    for text in told:
        assert text not in site.log
        for path, content in site.server.site.listing().items():
            assert text.encode() not in content, f"{text} is in {path}"
    assert "Traceback" not in site.log


@pytest.mark.parametrize("listener", ["management", "router"])
def test_all_are_told_the_same(guarded: Guarded, listener: str, seeded: random.Random) -> None:
    check(guarded, listener, islice(credentials(seeded), 5000))


def check(site: Guarded, listener: str, lines: Iterator[list[str]]) -> None:
    """That these are all refused, and nothing comes of them."""
    before = site.effects()
    said, took = attacked(site, listener, lines)
    assert len(said) == 1, said
    assert {status for status, _ in said} == {401}
    took.sort()
    print(
        f"{listener}: p50 {took[len(took) // 2] * 1e3:.2f} ms, p99 {took[len(took) * 99 // 100] * 1e3:.2f} ms"
    )
    assert site.effects() == before
    check_nothing_written(site)


@pytest.mark.parametrize("listener", ["management", "router"])
def test_what_is_no_header_is_no_request(guarded: Guarded, listener: str) -> None:
    url = guarded.server.url if listener == "management" else guarded.server.router
    for verb, target, body in TARGETS[listener] + QUERIES:
        for value in NO_HTTP:
            with connected(url) as connection:
                got = connection.ask(verb, target, body, f"Authorization: Bearer {CANARY}{value}")
            assert got.status in (400, 431) or not got.status, value[:20]  # 0: closed while more was coming
            assert got.code in ("BAD_REQUEST", "")
    check_nothing_written(guarded)


def test_a_good_token_in_any_spelling_of_the_scheme(guarded: Guarded) -> None:
    for scheme in ("Bearer", "bearer", "BEARER", "bEARER"):
        with connected(guarded.server.url) as connection:
            for target in (API, "/serving-endpoints/models"):
                got = connection.ask("GET", target, b"", f"authorization:{scheme} {ADMIN.token} ")
                assert got.status == 200, (scheme, target)
