"""GET /metrics on the management listener: what the whole router has counted, for those who may see it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.router import rig
from tests.router.rig import bearer, config, keyring, request, service, write_table
from tests.router.upstreams import Upstream, entity, table


async def page(port: int, fields: str = "", target: str = "/metrics") -> rig.Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(b"", target, fields, "GET"))
    got = await rig.read_answer(reader)
    writer.close()
    return got


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def test_what_was_counted_is_told_on_the_management_listener_only(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up, Upstream(path=tmp_path / "api.sock"):
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            router = service(
                replace(config(tmp_path), management=("127.0.0.1", 0), api_path=tmp_path / "api.sock")
            )
            await router.start(None)
            try:
                data, management = port_of(router.url), port_of(router.management_url)
                reader, writer = await asyncio.open_connection("127.0.0.1", data)
                for _ in range(3):
                    writer.write(request())
                    assert (await rig.read_answer(reader)).status == 200
                writer.close()
                got = await page(management)
                assert got.status == 200
                assert got.fields["content-type"].startswith("text/plain")
                families = {f.name: f for f in text_string_to_metric_families(got.body.decode())}
                samples = families["servestate_requests"].samples
                assert [(s.labels["entity"], s.labels["code"], s.value) for s in samples] == [
                    ("a", "200", 3.0)
                ]
                assert (await page(data)).status == 404
                assert (await page(management, "Origin: http://evil\r\n")).status == 403
                assert (await page(management, target="/metrics/")).status == 404
            finally:
                await router.stop()

    rig.run(body())


def test_it_names_every_endpoint_so_not_everybody_sees_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream(path=tmp_path / "api.sock"):
            write_table(tmp_path / "table.json", table(entity("a", 100)))
            rig.write_keyring(
                tmp_path / "access.json",
                keyring(
                    watcher={"user_name": "w", "rights": ["view"]}, someone={"user_name": "s", "rights": []}
                ),
            )
            router = service(
                replace(
                    config(tmp_path),
                    management=("127.0.0.1", 0),
                    api_path=tmp_path / "api.sock",
                    keyring_path=tmp_path / "access.json",
                )
            )
            await router.start(None)
            try:
                management = port_of(router.management_url)
                assert (await page(management)).status == 401
                assert (await page(management, bearer("someone"))).status == 403
                assert (await page(management, bearer("watcher"))).status == 200
            finally:
                await router.stop()

    rig.run(body())
