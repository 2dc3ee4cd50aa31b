"""T58: where connections to external entities may go, whatever the name, the resolver or the spelling."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import ExternalSpec
from servestate.planner.table import Credential
from servestate.providers.external import ExternalProvider
from servestate.providers.protocol import Marks, PermanentError
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.router.guards import egress
from servestate.runtime.router.guards.egress import GLOBAL_ONLY, Egress, Forbidden, check_address, connect
from tests.router.rig import QUICK, Rig, ask, request, run, serving
from tests.router.upstreams import Received, Upstream, answer, entity, says, table

NEVER = """
    0.0.0.0 0.1.2.3 169.254.0.1 169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192
    224.0.0.1 239.255.255.255 255.255.255.255 :: fe80::1 febf::1 fe80::1%lo fd00:ec2::254 fd20:ce::254
    ff02::1 ::ffff:169.254.169.254 ::ffff:0.0.0.0 ::ffff:a9fe:a9fe ::169.254.169.254 2002:a9fe:a9fe::1
    64:ff9b::a9fe:a9fe 64:ff9b:1::a9fe:a9fe ::ffff:0:169.254.169.254 ::ffff:100.100.100.200
    2002:6464:64c8::
"""
INNER = """
    127.0.0.1 127.255.255.254 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 100.64.0.1
    192.0.2.1 198.18.0.1 198.51.100.7 203.0.113.9 240.0.0.1 ::1 fc00::1 fd12:3456::1 fec0::1 2001:db8::1
    100::1 4000::1 ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:10.0.0.1 ::127.0.0.1 2002:7f00:1::
    2002:c0a8:1::1 64:ff9b::7f00:1 64:ff9b::10.1.2.3 64:ff9b:1::a00:1 ::ffff:0:127.0.0.1
"""
GLOBAL = """
    1.1.1.1 8.8.8.8 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1 169.253.255.255 223.255.255.254
    2606:4700:4700::1111 2001:4860:4860::8888 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1
"""
ODD_SPELLINGS = [
    *("2130706433", "017700000001", "0x7f000001", "0177.0.0.1", "0x7f.1", "127.1", "127.0.1", "0"),
    *("2852039166", "0xA9FEA9FE", "0251.0376.0251.0376", "169.16689662"),
]


@pytest.mark.parametrize("ip", NEVER.split())
def test_nothing_allows_what_is_never_connected_to(ip: str) -> None:
    everything = Egress.of(["0.0.0.0/0", "::/0", "somewhere"])
    for allowed in (
        (),
        everything.networks,
        everything.reach("somewhere"),
        GLOBAL_ONLY.reach(ip.partition("%")[0]),
    ):
        with pytest.raises(Forbidden):
            check_address(ip, allowed)


@pytest.mark.parametrize("ip", INNER.split())
def test_what_is_not_global_needs_a_rule(ip: str) -> None:
    with pytest.raises(Forbidden, match="not a global address"):
        check_address(ip, GLOBAL_ONLY.reach("api.example.com"))
    check_address(ip, GLOBAL_ONLY.reach(ip))
    check_address(ip, Egress.of(["Inner.Example"]).reach("inner.example."))
    with pytest.raises(Forbidden):
        check_address(ip, Egress.of(["inner.example"]).reach("other.example"))


@pytest.mark.parametrize("ip", GLOBAL.split())
def test_global_addresses_need_none(ip: str) -> None:
    check_address(ip, ())


def test_a_rule_covers_its_network_and_no_more() -> None:
    allowed = Egress.of(["10.1.0.0/16", "fd00:1::/32", "192.168.0.9"]).reach("any.example")
    for ip in ("10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5", "192.168.0.9", "64:ff9b::10.1.0.1"):
        check_address(ip, allowed)
    for ip in ("10.2.0.1", "fd00:2::1", "192.168.0.10", "127.0.0.1"):
        with pytest.raises(Forbidden):
            check_address(ip, allowed)


def test_an_address_in_the_url_stands_for_itself_only() -> None:
    with pytest.raises(Forbidden):
        check_address("127.0.0.2", GLOBAL_ONLY.reach("127.0.0.1"))
    check_address("::1", GLOBAL_ONLY.reach("LOCALHOST"))
    with pytest.raises(Forbidden):
        check_address("10.0.0.1", GLOBAL_ONLY.reach("localhost"))


@pytest.mark.parametrize("entry", ["", "10.0.0.1/8", "10.0.0.0/99"])
def test_a_rule_that_is_none_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"network|entry|host bits"):
        Egress.of([entry])


class Resolver:
    """The test's loop with a resolver that gives the scripted answers in turn, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._answers = list(answers)
        self.asked = 0
        self.connected: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def getaddrinfo(self, host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        self.asked += 1
        now = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [(0, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in now]

    async def sock_connect(self, sock: socket.socket, address: tuple[str, int]) -> None:
        self.connected.append(address[0])
        await self._loop.sock_connect(sock, address)


class Silent(asyncio.Protocol):
    """Connected, and that is all."""

    transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


async def dial(
    loop: Any, host: str, port: int, policy: Egress = GLOBAL_ONLY, tls: ssl.SSLContext | None = None
) -> str:
    """Connect, and say where."""
    client = Silent()
    await connect(loop, lambda: client, host, port, tls, policy)
    assert client.transport is not None
    peer = client.transport.get_extra_info("peername")[0]
    client.transport.close()
    return str(peer)


@pytest.mark.parametrize("ip", [*NEVER.split(), *INNER.split()])
def test_a_name_that_leads_inside_is_not_connected_to(ip: str) -> None:
    async def body() -> None:
        for answers in ([ip], ["8.8.8.8", ip], [ip, "2606:4700:4700::1111"]):
            loop = Resolver(answers)
            with pytest.raises(Forbidden, match=r"api\.example\.com"):
                await dial(loop, "api.example.com", 80)
            assert loop.connected == []

    run(body())


def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    """Rebinding: the resolver answers a fine address, then loopback, where a server waits for the victim."""

    async def body() -> None:
        async with Upstream() as victim:
            policy = Egress.of(["127.0.0.2"])
            loop = Resolver(["127.0.0.2"], ["127.0.0.1"])
            with pytest.raises(OSError, match=r"refused|Connect"):  # nobody listens there
                await dial(loop, "rebind.example", victim.port, policy)
            assert (loop.asked, loop.connected) == (1, ["127.0.0.2"])
            with pytest.raises(Forbidden):
                await dial(loop, "rebind.example", victim.port, policy)
            assert loop.asked == 2
            assert victim.connections == 0

    run(body())


def test_addresses_are_tried_in_the_order_of_the_resolver() -> None:
    async def body() -> None:
        async with Upstream() as upstream:
            loop = Resolver(["127.0.0.9", "127.0.0.8", "127.0.0.1"])
            policy = Egress.of(["127.0.0.0/8"])
            assert await dial(loop, "api.example.com", upstream.port, policy) == "127.0.0.1"
            assert loop.connected == ["127.0.0.9", "127.0.0.8", "127.0.0.1"]

    run(body())


def test_an_address_without_an_answer_is_left_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "_NEXT_AFTER_S", 0.02)

    class Deaf(Resolver):
        async def sock_connect(self, sock: socket.socket, address: tuple[str, int]) -> None:
            if address[0] == "127.0.0.9":
                await asyncio.sleep(60)
            await super().sock_connect(sock, address)

    async def body() -> None:
        async with Upstream() as upstream:
            loop = Deaf(["127.0.0.9", "127.0.0.1"])
            assert await dial(loop, "api.example", upstream.port, Egress.of(["api.example"])) == "127.0.0.1"

    run(body())


def test_the_certificate_is_for_the_name(tmp_path: Path) -> None:
    """The connection goes to an address; the server is told the name and must prove that it is its own."""
    certificate, key = certificate_for("api.example", tmp_path)

    async def body() -> None:
        told: list[str] = []
        serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        serving.load_cert_chain(certificate, key)
        serving.sni_callback = lambda _sock, name, _context: told.append(name)
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=serving)
        port = server.sockets[0].getsockname()[1]
        tls = ssl.create_default_context(cafile=certificate)
        policy = Egress.of(["127.0.0.1"])
        assert await dial(Resolver(["127.0.0.1"]), "api.example", port, policy, tls) == "127.0.0.1"
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(Resolver(["127.0.0.1"]), "other.example", port, policy, tls)
        server.close()
        assert told == ["api.example", "other.example"]

    run(body())


def certificate_for(name: str, folder: Path) -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_path.write_bytes(key.private_bytes(*formats))
    return certificate_path, key_path


@pytest.mark.parametrize("ip", ["169.254.169.254", "0.0.0.0", "::", "fe80::1", "100.100.100.200"])
def test_not_even_the_operators_own_url_leads_there(ip: str) -> None:
    async def body() -> None:
        with pytest.raises(Forbidden):
            await dial(asyncio.get_running_loop(), ip, 9)

    run(body())


def test_these_tests_see_a_router_that_does_not_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(egress, "check_address", lambda ip, allowed: None)

    async def body() -> None:
        async with Upstream() as victim:
            assert await dial(Resolver(["127.0.0.1"]), "rebind.example", victim.port) == "127.0.0.1"
            assert victim.connections == 1

    run(body())


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com@127.0.0.1/v1",
        "https://user:word@api.example.com/v1",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_x",
        "http:///v1",
        "//127.0.0.1/v1",
        "http://127.0.0.1:port/v1",
    ],
)
def test_urls_that_are_refused_before_any_connection(url: str) -> None:
    spec = ExternalSpec(kind="openai", url=url, model="m", task="llm/v1/chat", secret="")
    provider = ExternalProvider(EnvSecrets({}))
    with pytest.raises(PermanentError, match="cannot be called"):
        asyncio.run(provider.launch(spec, Marks("lineage", ADDRESS, 1, "op")))


@pytest.mark.parametrize("host", ODD_SPELLINGS)
def test_numeric_spellings_are_names_and_judged_by_what_they_resolve_to(host: str) -> None:
    """The real resolver: it takes most of them."""

    async def body() -> None:
        with pytest.raises(OSError, match=r"may not be connected to|[Nn]ame|resol"):
            await dial(asyncio.get_running_loop(), host, 9)

    run(body())


def test_localhost_and_addresses_as_written_are_the_operators_word() -> None:
    async def body() -> None:
        async with Upstream() as upstream:
            loop = asyncio.get_running_loop()
            assert await dial(loop, "127.0.0.1", upstream.port) == "127.0.0.1"
            assert await dial(loop, "localhost", upstream.port) == "127.0.0.1"

    run(body())


# Through the router.

ADDRESS = InstanceAddress("chat-ep", "a", "0" * 12, 0)
KEY = Credential("Authorization", "Bearer ", "{{secrets/s/k}}")
SECRET = {"SERVESTATE_SECRET_S__K": "sk-only-for-the-first"}


async def ask_entity(rig: Rig) -> Any:
    return await ask(rig, request(target="/serving-endpoints/chat-ep/served-models/a/invocations"))


@pytest.mark.parametrize("host", ["127.1", "2130706433", "localtest.invalid"])
def test_an_external_entity_inside_by_another_name_gets_nothing(host: str) -> None:
    async def body() -> None:
        async with Upstream() as upstream:
            url = f"http://{host}:{upstream.port}/v1/chat/completions"
            entities = entity("a", 100, url, fixed_path=True, credential=KEY)
            async with serving(table(entities), environ=SECRET) as rig:
                assert (await ask_entity(rig)).status == 503
            assert upstream.connections == 0

    run(body())


def test_a_rule_lets_it_through_and_engines_need_none() -> None:
    async def body() -> None:
        async with Upstream() as upstream:
            limits = dataclasses.replace(QUICK, egress=Egress.of(["127.0.0.0/8"]))
            url = f"http://127.1:{upstream.port}"
            external = entity("a", 100, f"{url}/v1/chat/completions", fixed_path=True)
            async with serving(table(external), limits) as rig:
                assert (await ask_entity(rig)).status == 200
            async with serving(table(entity("a", 100, url))) as rig:
                assert (await ask_entity(rig)).status == 200
            assert upstream.connections == 2

    run(body())


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
def test_a_redirect_is_an_error_and_the_key_stays_here(status: str) -> None:
    async def body() -> None:
        async with Upstream() as lure, Upstream() as upstream:
            upstream.script = says(answer(b"", status, f"Location: {lure.url}/v1/chat/completions\r\n"))
            url = f"{upstream.url}/v1/chat/completions"
            entities = entity("a", 100, url, fixed_path=True, credential=KEY)
            async with serving(table(entities), environ=SECRET) as rig:
                got = await ask_entity(rig)
            assert got.status >= 400
            assert "location" not in got.fields
            assert lure.connections == 0
            assert [dict(r.fields)["authorization"] for r in upstream.received] == [
                "Bearer sk-only-for-the-first"
            ]

    run(body())


def test_a_key_goes_to_the_entity_that_it_was_declared_for() -> None:
    async def body() -> None:
        async with Upstream() as first, Upstream() as second:
            path = "/v1/chat/completions"
            both = (
                entity("a", 50, first.url + path, fixed_path=True, credential=KEY),
                entity("b", 50, second.url + path, fixed_path=True),
            )
            async with serving(table(*both), environ=SECRET) as rig:
                for _ in range(4):
                    assert (await ask(rig, request())).status == 200

            def keys(received: list[Received]) -> set[bool]:
                return {b"sk-only-for-the-first" in one.head for one in received}

            assert keys(first.received) == {True}
            assert keys(second.received) == {False}

    run(body())
