"""TLS in front of the router: who can talk to it, certificates that change while it runs, and bad ones."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.runtime.router import RouterConfig
from servestate.runtime.router.process.service import Service
from servestate.runtime.router.process.tls import Certificate, TlsFiles
from tests.router import rig
from tests.router.processes import ask, connect, launched, load, status, when
from tests.router.rig import QUICK, bounded, config, read_answer, request, rest_of, write_table
from tests.router.upstreams import Received, Upstream, chunk, entity, sse_head, table

EC = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def pair(folder: Path, name: str, *more: str, kind: tuple[str, ...] = EC) -> tuple[Path, Path]:
    """A self-signed certificate for `localhost` under that common name, and its key of that kind."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", *kind),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert), *(more or ("-nodes",))),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("pairs")
    found = {name: pair(folder, name) for name in ("one", "two")}
    return found | {"rsa": pair(folder, "rsa", kind=("rsa:2048",))}


@pytest.fixture
def files(tmp_path: Path, pairs: dict[str, tuple[Path, Path]]) -> TlsFiles:
    """The files that a router is given; they hold the pair `one`."""
    found = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")
    put(found, pairs["one"])
    return found


def put(files: TlsFiles, found: tuple[Path, Path]) -> None:
    """Exchange both files, one after the other, as those do who renew certificates."""
    for path, source in zip((files.cert, files.key), found, strict=True):
        part = path.with_suffix(".part")
        part.write_bytes(source.read_bytes())
        os.replace(part, path)


def trusting(*certificates: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for certificate in certificates:
        context.load_verify_locations(certificate)
    return context


def router_of(folder: Path, files: TlsFiles, **more: object) -> tuple[Service, RouterConfig]:
    settings = config(folder, tls=files, **more)
    return rig.service(settings), settings


def port_of(router: Service) -> int:
    return int(router.url.rsplit(":", 1)[1])


def test_it_speaks_tls_1_2_and_later_and_http_1_1(tmp_path: Path, files: TlsFiles) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            router, _ = router_of(tmp_path, files)
            await router.start()
            assert router.url.startswith("https://127.0.0.1:")
            context = trusting(files.cert)
            context.set_alpn_protocols(["h2", "http/1.1"])
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context.minimum_version = context.maximum_version = version
                reader, writer = await connect(port_of(router), context)
                over = writer.get_extra_info("ssl_object")
                assert (over.selected_alpn_protocol(), over.version()) == (
                    "http/1.1",
                    version.name.replace("_", "."),
                )
                for _ in range(2):  # kept alive
                    writer.write(request())
                    assert (await bounded(read_answer(reader))).status == 200
                writer.close()
            await router.stop()

    rig.run(body())


def test_older_versions_are_not_spoken(tmp_path: Path, files: TlsFiles) -> None:
    context = Certificate(files).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_a_stream_and_a_large_body_pass_whole(tmp_path: Path, files: TlsFiles) -> None:
    async def body() -> None:
        async def stream(received: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(sse_head())
            for number in range(200):
                writer.write(chunk(b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number))
                await writer.drain()
            writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

        async with Upstream(stream) as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            router, _ = router_of(tmp_path, files)
            await router.start()
            reader, writer = await connect(port_of(router), trusting(files.cert))
            raw = b'{"messages":[{"content":"%b"}],"stream":true,"model":"chat-ep"}' % (b"x" * 3_000_000)
            writer.write(request(raw))
            got = await bounded(read_answer(reader))
            assert (got.status, got.whole, got.body.count(b"data: ")) == (200, True, 201)
            assert len(up.received[0].body) >= 3_000_000
            writer.close()
            await router.stop()

    rig.run(body())


def test_plain_text_and_silence_on_a_tls_port_end_soon(tmp_path: Path, files: TlsFiles) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            router, _ = router_of(tmp_path, files, limits=replace(QUICK, header_s=0.3))
            await router.start()
            for said in (request(), b""):
                reader, writer = await asyncio.open_connection("127.0.0.1", port_of(router))
                writer.write(said)
                assert b"HTTP" not in await bounded(rest_of(reader), 3)
                writer.close()
            assert not up.received
            assert (await ask(port_of(router), tls=trusting(files.cert))).status == 200
            await router.stop()

    rig.run(body())


def test_who_does_not_end_a_handshake_counts_from_the_start_and_not_for_ever(
    tmp_path: Path, files: TlsFiles
) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            limits = replace(QUICK, header_s=1.5, client_sockets=3)
            router, _ = router_of(tmp_path, files, limits=limits)
            await router.start()
            port, trusted = port_of(router), trusting(files.cert)
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            await when(tmp_path, lambda told: told["connections"] == 3)
            with pytest.raises(OSError):  # noqa: PT011 - reset, or the end of the file
                await bounded(ask(port, tls=trusted), 1)
            for reader, _ in silent:
                assert await bounded(rest_of(reader), 3) == b""
            await when(tmp_path, lambda told: told["connections"] == 0)
            assert (await ask(port, tls=trusted)).status == 200
            for _, writer in silent:
                writer.close()
            await router.stop()

    rig.run(body())


def test_who_is_in_a_handshake_as_it_stops_is_answered(tmp_path: Path, files: TlsFiles) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            router, _ = router_of(tmp_path, files)
            await router.start()
            sock = socket.create_connection(("127.0.0.1", port_of(router)))
            await when(tmp_path, lambda told: told["connections"] == 1)
            stopping = asyncio.create_task(router.stop())
            await asyncio.sleep(0.1)
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=trusting(files.cert), server_hostname="localhost"
            )
            writer.write(request())
            got = await bounded(read_answer(reader))
            assert (got.status, got.fields["connection"]) == (200, "close")
            writer.close()
            await bounded(stopping)

    rig.run(body())


def test_the_end_waits_not_long_for_a_handshake(tmp_path: Path, files: TlsFiles) -> None:
    async def body() -> None:
        write_table(tmp_path / "table.json", table(entity("a", 100)))
        router, _ = router_of(tmp_path, files)
        await router.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(router))
        await when(tmp_path, lambda told: told["connections"] == 1)
        await bounded(router.stop(), 3)
        assert await bounded(rest_of(reader), 1) == b""
        writer.close()

    rig.run(body())


@pytest.mark.parametrize("successor", ["two", "rsa"])
def test_a_new_pair_is_used_for_new_connections(
    tmp_path: Path, files: TlsFiles, pairs: dict[str, tuple[Path, Path]], successor: str
) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            router, _ = router_of(tmp_path, files)
            await router.start()
            port = port_of(router)
            first, second = (trusting(pairs[name][0]) for name in ("one", successor))
            reader, writer = await connect(port, first)
            put(files, pairs[successor])
            await when(tmp_path, lambda told: told["tls_error"] is None)
            await _until_trusted(port, second)
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(port, tls=first)
            writer.write(request())  # the connection that stood goes on
            assert (await bounded(read_answer(reader))).status == 200
            writer.close()
            await router.stop()

    rig.run(body())


async def _until_trusted(port: int, context: ssl.SSLContext) -> None:
    end = asyncio.get_running_loop().time() + 5
    while True:
        try:
            assert (await ask(port, tls=context)).status == 200
            return
        except ssl.SSLError:
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.01)


def _not_its_key(files: TlsFiles, pairs: dict[str, tuple[Path, Path]]) -> None:
    put(files, (pairs["two"][0], pairs["one"][1]))


def _no_pem(files: TlsFiles, pairs: dict[str, tuple[Path, Path]]) -> None:
    files.cert.write_text("no certificate")


def _gone(files: TlsFiles, pairs: dict[str, tuple[Path, Path]]) -> None:
    files.key.unlink()


def _locked(files: TlsFiles, pairs: dict[str, tuple[Path, Path]]) -> None:
    put(files, pair(files.cert.parent, "locked", "-passout", "pass:secret"))


BAD = [
    pytest.param(_not_its_key, "is not the key of", id="key of another"),
    pytest.param(_no_pem, "no usable PEM", id="no PEM"),
    pytest.param(_gone, "No such file", id="gone"),
    pytest.param(_locked, "passphrase", id="passphrase"),
]


@pytest.mark.parametrize(("spoil", "why"), BAD)
def test_a_bad_pair_is_refused_and_the_old_one_serves(
    tmp_path: Path,
    files: TlsFiles,
    pairs: dict[str, tuple[Path, Path]],
    spoil: Callable[[TlsFiles, dict[str, tuple[Path, Path]]], None],
    why: str,
) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            router, _ = router_of(tmp_path, files)
            await router.start()
            spoil(files, pairs)
            told = await when(tmp_path, lambda told: told["tls_error"] is not None)
            assert why in told["tls_error"]
            assert "PRIVATE" not in told["tls_error"]
            assert (await ask(port_of(router), tls=trusting(pairs["one"][0]))).status == 200
            put(files, pairs["two"])
            await when(tmp_path, lambda told: told["tls_error"] is None)
            assert (await ask(port_of(router), tls=trusting(pairs["two"][0]))).status == 200
            await router.stop()

    rig.run(body())


@pytest.mark.parametrize(("spoil", "why"), BAD)
def test_it_does_not_start_with_a_bad_pair(
    tmp_path: Path,
    files: TlsFiles,
    pairs: dict[str, tuple[Path, Path]],
    spoil: Callable[[TlsFiles, dict[str, tuple[Path, Path]]], None],
    why: str,
) -> None:
    spoil(files, pairs)
    with pytest.raises(InvalidInput, match="SS640") as caught:
        Certificate(files)
    assert why in str(caught.value)
    assert "fix: give PEM files" in str(caught.value)


def test_a_listener_with_tls_may_be_reached_by_others(tmp_path: Path, files: TlsFiles) -> None:
    """The check of SS601 is for plain text; tokens are asked for all the same."""
    write_table(tmp_path / "table.json", table(entity("a", 100)))
    with pytest.raises(InvalidInput, match="no access tokens are declared"):
        rig.Router(config(tmp_path, host="0.0.0.0", tls=files))
    with pytest.raises(InvalidInput, match="give it a certificate"):
        rig.Router(config(tmp_path, host="0.0.0.0"))


@pytest.mark.slow
def test_certificates_change_under_load_on_every_worker(
    tmp_path: Path, files: TlsFiles, pairs: dict[str, tuple[Path, Path]]
) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            given = [str(files.cert), str(files.key)]
            both = trusting(pairs["one"][0], pairs["two"][0])
            with launched(tmp_path, workers=2, tls=given) as router:
                async with load(router.port, clients=6, reuse=5, tls=both) as ledger:
                    for number in range(20):
                        put(files, pairs[("two", "one")[number % 2]])
                        await asyncio.sleep(0.1)
                told = await asyncio.to_thread(status, tmp_path)
                assert told["tls_error"] is None
                assert told["listen"].startswith("https://")
                assert ledger.failures() == []
                assert ledger.statuses[200] > 100

    rig.run(body())


@pytest.mark.slow
def test_an_upstream_behind_a_private_authority(tmp_path: Path, pairs: dict[str, tuple[Path, Path]]) -> None:
    """SSL_CERT_FILE names who is trusted, as for every program that uses OpenSSL."""

    async def body() -> None:
        cert, key = pairs["one"]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        upstream = Upstream()
        server = await asyncio.start_server(upstream._serve, "127.0.0.1", 0, ssl=context, limit=1 << 25)
        port = server.sockets[0].getsockname()[1]
        write_table(tmp_path / "table.json", table(entity("a", 100, f"https://localhost:{port}")))
        for environ, wanted in (({"SSL_CERT_FILE": str(cert)}, 200), ({}, 503)):
            with launched(tmp_path, environ=environ, workers=2) as router:
                reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
                writer.write(request())
                assert (await bounded(read_answer(reader))).status == wanted
                writer.close()
                assert await asyncio.to_thread(router.end) == 0
        server.close()

    rig.run(body())
