"""Splits over HTTP, tables that change under load, tables that must not be served, secrets."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.table import Credential, RoutingTable
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.router import Router
from servestate.runtime.router.table_watch import TableWatch
from tests.router import rig
from tests.router.rig import Rig, ask, config, read_answer, request, serving, write_table
from tests.router.upstreams import Gate, Upstream, answer, entity, table

CREDENTIAL = Credential("Authorization", "Bearer ", "{{secrets/s/k}}")


async def split_of(r: Rig, count: int) -> Counter[str]:
    reader, writer = await r.connect()
    found: Counter[str] = Counter()
    for _ in range(count):
        writer.write(request())
        found[(await read_answer(reader)).fields["served-model-name"]] += 1
    writer.close()
    return found


@pytest.mark.parametrize("weights", [(90, 10), (1, 99), (33, 33, 34), (0, 100)])
def test_splits_are_exact_over_http(weights: tuple[int, ...]) -> None:
    async def body() -> None:
        async with Upstream() as up:
            entities = [entity(f"e{i}", w, up.url) for i, w in enumerate(weights)]
            async with serving(table(*entities)) as r:
                found = await split_of(r, 300)
                assert [found[f"e{i}"] for i in range(len(weights))] == [3 * w for w in weights]

    rig.run(body())


async def installed(r: Rig, new: RoutingTable) -> None:
    r.install(new)
    await rig.until(lambda: r.router.report()["table_version"] == new.version)


def test_a_new_table_counts_anew_only_where_weights_changed() -> None:
    async def body() -> None:
        async with Upstream() as up:
            a, b = entity("a", 90, up.url), entity("b", 10, up.url)
            async with serving(table(a, b)) as r:
                assert await split_of(r, 55) == {"a": 50, "b": 5}
                await installed(r, table(a, replace(b, model="other"), version=2, config=2))
                # Position 5 of the cycle is kept: the next ones complete it.
                assert await split_of(r, 5) == {"a": 4, "b": 1}
                assert r.counters("chat-ep", "a")["assigned"] == 54
                await installed(r, table(replace(a, weight=50), replace(b, weight=50), version=3))
                assert r.counters("chat-ep", "a")["assigned"] == 0
                assert r.counters("chat-ep", "a")["requests"] == 54
                assert await split_of(r, 10) == {"a": 5, "b": 5}

    rig.run(body())


def test_requests_in_flight_keep_their_table() -> None:
    async def body() -> None:
        gate = Gate(answer(b"old"))
        async with Upstream(gate) as old, Upstream() as new, serving(table(entity("a", 100, old.url))) as r:
            running = asyncio.create_task(ask(r, request()))
            await rig.until(lambda: len(old.received) == 1)
            moved = replace(entity("a", 100, new.url), backends=entity("a2", 1, new.url).backends)
            await installed(r, table(moved, version=2))
            assert (await ask(r, request())).body == b'{"ok":true}'
            replicas = r.router.report()["replicas"]
            assert {name: one["inflight"] for name, one in replicas.items()} == {"a#0": 1, "a2#0": 0}
            gate.open()
            assert (await running).body == b"old"
            assert r.router.report()["replicas"]["a#0"]["inflight"] == 0
            await rig.until(lambda: old.open == 0)
            await installed(r, table(moved, version=3))
            assert "a#0" not in r.router.report()["replicas"]

    rig.run(body())


def test_no_request_fails_while_tables_change() -> None:
    async def body() -> None:
        async with Upstream() as one, Upstream() as two, serving(table(entity("a", 100, one.url))) as r:
            done = asyncio.Event()

            async def load() -> Counter[int]:
                reader, writer = await r.connect()
                statuses: Counter[int] = Counter()
                while not done.is_set():
                    writer.write(request())
                    statuses[(await read_answer(reader)).status] += 1
                writer.close()
                return statuses

            tasks = [asyncio.create_task(load()) for _ in range(8)]
            for version in range(2, 22):
                url = (one.url, two.url)[version % 2]
                share = version * 4
                a, b = entity("a", share, url), entity("b", 100 - share, url)
                await installed(r, table(a, b, version=version, config=version))
            done.set()
            statuses = sum([await task for task in tasks], Counter[int]())
            assert statuses.keys() == {200}

    rig.run(body())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("{"), "not JSON"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: write_table(path, table(entity("a", 100), version=0)), "older than version 1"),
        (
            lambda path: write_table(path, table(entity("a", 100, credential=CREDENTIAL), version=2)),
            "SERVESTATE_SECRET_S__K",
        ),
    ],
)
def test_a_bad_table_is_refused_and_the_old_one_serves(make, message: str) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            make(r.config.table_path)
            await rig.until(lambda: r.router.report()["table_error"] is not None)
            assert message in r.router.report()["table_error"]
            assert r.router.report()["table_version"] == 1
            assert (await ask(r, request())).status == 200
            await installed(r, table(entity("a", 100, up.url), version=3))
            assert r.router.report()["table_error"] is None

    rig.run(body())


def start_with_and_without_a_table(folder: Path) -> None:
    """Start routers on a good table, a damaged one and none."""
    path = folder / "table.json"
    write_table(path, table(entity("a", 100), version=5))
    assert Router(config(folder)).report()["table_version"] == 5
    path.write_text("damaged")
    router = Router(config(folder))
    assert router.report()["table_version"] == 5
    assert "not JSON" in router.report()["table_error"]
    path.unlink()
    assert Router(config(folder)).report()["table_version"] == 5


def test_it_starts_from_the_last_good_copy(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="SS602"):
        Router(config(tmp_path))
    start_with_and_without_a_table(tmp_path)


def test_the_check_notices_a_router_that_keeps_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TableWatch, "_keep_copy", lambda *_: None)
    with pytest.raises(InvalidInput, match="SS602"):
        start_with_and_without_a_table(tmp_path)
    assert (tmp_path / "table.json").read_text() == "damaged", "it came as far as that"


def test_secrets_are_resolved_at_start_or_named(tmp_path: Path) -> None:
    write_table(tmp_path / "table.json", table(entity("a", 100, "http://127.0.0.1:1", credential=CREDENTIAL)))
    with pytest.raises(InvalidInput, match="SERVESTATE_SECRET_S__K"):
        Router(config(tmp_path))
    split = {"SERVESTATE_SECRET_S__K": "se\r\ncret: x"}
    with pytest.raises(InvalidInput, match="no header may hold") as caught:
        Router(config(tmp_path, secrets=EnvSecrets(split)))
    assert "cret: x" not in str(caught.value)
    assert Router(config(tmp_path, secrets=EnvSecrets({"SERVESTATE_SECRET_S__K": "ok"})))


def test_an_external_entity_gets_the_whole_url_and_the_key() -> None:
    async def body() -> None:
        async with Upstream() as up:
            route = entity(
                "gpt",
                100,
                f"{up.url}/openai/v1/chat/completions?v=1",
                fixed_path=True,
                task="llm/v1/chat",
                credential=CREDENTIAL,
                headers=(("X-Org", "o"),),
            )
            async with serving(table(route), environ={"SERVESTATE_SECRET_S__K": "key"}) as r:
                assert (await ask(r, request(fields="Authorization: Bearer mine\r\n"))).status == 200
                assert up.received[0].target == "/openai/v1/chat/completions?v=1"
                fields = dict(up.received[0].fields)
                assert (fields["authorization"], fields["x-org"]) == ("Bearer key", "o")
                got = await ask(r, request(b'{"model":"chat-ep","input":"x"}', "/v1/embeddings"))
                assert got.status == 400
                assert len(up.received) == 1

    rig.run(body())
