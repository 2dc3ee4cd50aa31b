"""`servestate serve`, `up` and `query`, with the real router between."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.harness import SPLIT, Conversation, Site, bundle, local, remote
from tests.cli.managed import tokens, with_site
from tests.cli.snapshots import check
from tests.ports import free_port


@pytest.fixture
def listen(site: Site) -> str:
    """The address of a router to come, already in the bundle."""
    address = f"127.0.0.1:{free_port()}"
    site.configure(SPLIT, listen=address)
    return address


@pytest.fixture
def serving(site: Site, listen: str) -> Iterator[Conversation]:
    """A router on an applied site."""
    site.apply()
    router = site.watch("serve")
    router.wait_for(f"servestate: routing on http://{listen}")
    yield router
    router.process.send_signal(signal.SIGTERM)
    router.end()


def test_serve_before_apply(site: Site, listen: str) -> None:
    check(site.run("serve", "--no-api"), site.folder, "serve/nothing_applied")


def test_query(site: Site, serving: Conversation) -> None:
    result = site.run("query", "multi-model", "hello").ok()
    assert (result.out, result.err) == ("1 says hello\n", "[current]\n")
    past = site.run("query", "multi-model/challenger", "hello").ok()
    assert (past.out, past.err) == ("1 says hello\n", "[challenger]\n")
    check(site.run("query", "nobody", "hello"), site.folder, "query/no_such_endpoint")
    check(site.run("query", "multi-model/nobody", "hello"), site.folder, "query/no_such_entity")


def test_query_without_a_router(site: Site, listen: str) -> None:
    site.apply()
    check(site.run("query", "multi-model", "hello"), site.folder, "query/no_router")


def certificate(folder: Path, name: str) -> Path:
    """A certificate that nobody else has signed, for a name that the tests' machine does not have."""
    made = folder / f"{name}.pem"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
    of = ("-subj", "/CN=serving.example", "-addext", "subjectAltName=DNS:serving.example", "-days", "2")
    subprocess.run(
        ["openssl", "req", "-x509", *key, *of, "-out", made.name], cwd=folder, check=True, capture_output=True
    )
    return made


@pytest.mark.slow
def test_query_over_tls_and_with_a_token(site: Site) -> None:
    listen = f"127.0.0.1:{free_port()}"
    site.configure(SPLIT)
    mine, other = certificate(site.folder, "mine"), certificate(site.folder, "other")
    served = shutil.copy(mine, site.folder / "served.pem")
    router = {"listen": listen, "tls": {"cert": served.name, "key": "mine.key"}}
    site.write(with_site(bundle(SPLIT), router=router, access=tokens({"ann": ["query"]})))
    site.apply()
    check(site.run("query", "multi-model", "hello"), site.folder, "query/no_router_with_tls")
    serving = site.watch("serve")
    serving.wait_for(f"servestate: routing on https://{listen}")
    check(site.run("query", "multi-model", "hello"), site.folder, "query/no_token")
    site.env["SERVESTATE_TOKEN"] = "token-of-ann"
    assert site.run("query", "multi-model", "hello").ok().out == "1 says hello\n"
    site.write((site.folder / "endpoints.yaml").read_text().replace("served.pem", other.name))
    check(site.run("query", "multi-model", "hello"), site.folder, "query/another_certificate")
    other.unlink()
    check(site.run("query", "multi-model", "hello"), site.folder, "query/no_certificate")
    serving.process.send_signal(signal.SIGTERM)
    serving.end()


@pytest.mark.slow
def test_status_of_a_replica_that_fails_and_is_the_only_one(site: Site) -> None:
    listen = f"127.0.0.1:{free_port()}"
    router = {"listen": listen, "health": {"errors": 1}}
    site.write(with_site(bundle({"elsewhere": {"theirs": remote()}}), router=router))
    site.apply()
    serving = site.watch("serve")
    serving.wait_for(f"servestate: routing on http://{listen}")
    assert site.run("query", "elsewhere", "hello").code == 1
    told = site.run("status").ok().out
    assert "  would leave out elsewhere/theirs@" in told
    assert "#0, but its entity has no other; it gets what goes nowhere else: " in told
    serving.process.send_signal(signal.SIGTERM)
    serving.end()


def test_status_shows_the_split_as_it_was(site: Site, serving: Conversation) -> None:
    said = Counter(site.run("query", "multi-model", "x").ok().err for _ in range(3))
    assert set(said) <= {"[current]\n", "[challenger]\n"}
    found = json.loads(site.run("status", "--json").ok().out)
    assert found["router"]["pid"] == serving.process.pid
    assert found["router"]["table_version"] == site.state().table_serial
    entities = found["endpoints"][0]["entities"]
    assert sum(entity["counters"]["requests"] for entity in entities) == 3
    assert [entity["desired_percent"] for entity in entities] == [90, 10]


def test_apply_moves_the_traffic_of_a_running_router(site: Site, serving: Conversation, listen: str) -> None:
    moved = {"multi-model": {"current": local("2", 100), "challenger": local("1", 0)}}
    site.configure(moved, listen=listen)
    site.apply()
    assert site.run("query", "multi-model", "hello").ok().out == "2 says hello\n"
    site.configure({"elsewhere": {"theirs": remote()}}, listen=listen)
    site.apply()
    assert site.alive() == []
    assert site.run("query", "elsewhere", "hello").code == 1  # nobody listens at port 1


def test_up_applies_then_serves(site: Site, listen: str) -> None:
    up = site.watch("up", "--auto-approve")
    up.wait_for(f"servestate: routing on http://{listen}")
    assert f"multi-model: http://{listen}/serving-endpoints/multi-model/invocations" in up.seen
    assert site.run("query", "multi-model", "hello").ok().out == "1 says hello\n"
    up.process.send_signal(signal.SIGINT)
    assert up.end() in (0, 130)
    assert "Traceback" not in up.seen
    assert len(site.alive()) == 2


def test_up_shows_how_to_ask_what_runs_here(site: Site, listen: str) -> None:
    site.write(
        with_site(bundle({"a": {"theirs": remote()}, **SPLIT}, listen=listen), access=tokens({"ann": []}))
    )
    up = site.watch("up", "--auto-approve")
    up.wait_for(f"servestate: routing on http://{listen}")
    shown = up.seen.partition("Try it:")[2]
    assert f"curl -s http://{listen}/serving-endpoints/multi-model/invocations" in shown
    assert '-H "authorization: Bearer $SERVESTATE_TOKEN"' in shown
    up.process.send_signal(signal.SIGTERM)
    up.end()


def test_up_does_not_serve_what_could_not_be_applied(site: Site, listen: str) -> None:
    site.configure({"solo": {"only": local("9")}}, listen=listen)
    result = site.run("up", "--auto-approve")
    assert result.code == 1
    assert "routing on" not in result.err


def test_port_of_the_router_is_taken(site: Site, serving: Conversation) -> None:
    result = site.run("serve")
    assert result.code == 1
    assert "Traceback" not in result.err
    assert result.err.startswith("SS6")


@pytest.mark.parametrize("path", [".", "endpoints.yaml/access.jsonl"])
def test_an_access_log_that_can_never_be_written_is_refused(site: Site, path: str) -> None:
    router = {"listen": f"127.0.0.1:{free_port()}", "access_log": {"path": path}}
    site.write(with_site(bundle({"elsewhere": {"theirs": remote()}}), router=router))
    site.apply()
    result = site.run("serve")
    assert result.code == 1
    assert result.err.startswith("SS644 the access log cannot be written: ")
    assert "(servestate.router.access_log.path)" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_done_any_more_is_said_once(site: Site, workers: int) -> None:
    log = site.folder / "logs" / "access.jsonl"
    listen = f"127.0.0.1:{free_port()}"
    router = {"listen": listen, "workers": workers, "access_log": {"path": "logs/access.jsonl"}}
    site.write(with_site(bundle({"elsewhere": {"theirs": remote()}}), router=router))
    site.apply()
    serving = site.watch("serve")
    serving.wait_for(f"servestate: routing on http://{listen}")
    log.parent.write_text("in the way")
    site.run("query", "elsewhere", "hello")
    serving.wait_for("servestate: the access log cannot be written: ")
    told = site.run("status").ok().out
    assert "  the access log cannot be written: " in told
    assert "one of its folders is a file: move that away" in told
    time.sleep(2.5)  # it is looked every second
    log.parent.unlink()
    serving.wait_for("servestate: no longer: the access log cannot be written")
    table = site.table.read_text()
    site.table.write_text("torn")
    serving.wait_for("servestate: the newest routing table is not used: .servestate/table.json: not JSON")
    assert "  the newest routing table is not used: " in site.run("status").ok().out
    site.table.write_text(table)
    serving.wait_for("servestate: no longer: the newest routing table is not used")
    serving.process.send_signal(signal.SIGTERM)
    serving.end()
    assert serving.seen.count("the access log cannot be written") == 2
    assert sum(len(file.read_text().splitlines()) for file in log.parent.glob("*.jsonl")) == 1
