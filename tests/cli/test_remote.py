"""`--server`: the same verbs on a site elsewhere, with the same words and exit codes as on this machine."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from servestate.runtime.api.call import Need
from servestate.runtime.api.commands import ROWS
from servestate.runtime.store.protocol import Owner
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.workspace import is_gone, owner_of_this_process
from tests.cli.harness import ONE, Result, Site, local, remote
from tests.cli.managed import AUTHORIZATION, Managed, managed, only_endpoints, tokens, with_site
from tests.cli.snapshots import filtered, in_order

ANY = "127.0.0.1:0"
PROGRESS = re.compile(r'"type": ?"apply_progress"|^    engine \d+ starts$|: Still ')
BOTH = {**ONE, "elsewhere": {"theirs": remote("a", 100)}}


@pytest.fixture
def server(site: Site) -> Iterator[Managed]:
    """A served site with nothing applied."""
    site.configure(BOTH, listen=ANY)
    with managed(site) as found:
        yield found


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    """A served site for tests that change nothing on it."""
    site = Site(tmp_path_factory.mktemp("reading") / "site")
    site.configure(BOTH, listen=ANY)
    try:
        with managed(site) as found:
            yield found
    finally:
        site.clean_up()


def there(client: Site, server: Managed, verb: str, *arguments: str, **env: str) -> Result:
    """A verb on the server."""
    return client.run(verb, "--server", server.url, *arguments, **env)


def rewrite(site: Site, old: str, new: str) -> None:
    """Change that text of its bundle."""
    bundle = site.folder / "endpoints.yaml"
    assert old in bundle.read_text()
    bundle.write_text(bundle.read_text().replace(old, new))


def said(result: Result, folder: Path, url: str = "") -> tuple[int, str, str]:
    """What a verb has said, without what differs between two sites; how an engine comes along is told only
    where it takes its time."""
    out, err = (
        "".join(
            line for line in filtered(in_order(text), folder).splitlines(True) if not PROGRESS.search(line)
        )
        for text in (result.out, result.err)
    )
    where = f" --server {filtered(url, folder)}"
    return result.code, out.replace(where, ""), err.replace(where, "")


FIRST = (("plan",), ("apply", "--auto-approve"), ("apply", "--auto-approve", "--json"))
THEN = (
    ("plan", "--out=plan.json", "--detailed-exitcode"),
    ("apply", "plan.json", "--json"),
    ("apply", "plan.json"),
    ("destroy", "--auto-approve"),
)


def test_everything_is_said_as_on_this_machine(server: Managed, tmp_path: Path) -> None:
    client, here = server.client(tmp_path / "client"), Site(tmp_path / "here")
    here.configure(BOTH, listen=ANY)

    def compare(verb: str, *arguments: str) -> None:
        locally = said(here.run(verb, *arguments), here.folder)
        remotely = said(there(client, server, verb, *arguments), client.folder, server.url)
        assert remotely == locally, (verb, *arguments)

    try:
        for argv in FIRST:
            compare(*argv)
        for one in (client, here):
            rewrite(one, "entity_version: '1'", "entity_version: '2'")
        for argv in THEN:
            compare(*argv)
    finally:
        here.clean_up()


def test_the_client_needs_neither_state_nor_docker(server: Managed, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "docker.py").write_text("raise ImportError('there is no docker here')\n")
    client = server.client(
        tmp_path / "client",
        only_endpoints((server.site.folder / "endpoints.yaml").read_text()),
        PYTHONPATH=str(bare),
        HOME=str(tmp_path / "nowhere"),
    )
    there(client, server, "apply", "--auto-approve").ok()
    found = json.loads(there(client, server, "status", "--json").ok().out)
    assert [endpoint["name"] for endpoint in found["endpoints"]] == ["elsewhere", "solo"]
    assert found["serial"] == server.site.state().serial
    assert found.keys() == json.loads(server.site.run("status", "--json").ok().out).keys()
    assert there(client, server, "status").ok().out == server.site.run("status").ok().out
    assert [path.name for path in client.folder.iterdir()] == ["endpoints.yaml"]


def test_findings_have_their_places(reading: Managed, tmp_path: Path) -> None:
    wrong = "resources:\n  model_serving_endpoints:\n    a:\n      name: a\n      nmae: b\n"
    client = reading.client(tmp_path / "client", wrong)
    remotely = there(client, reading, "plan")
    assert said(remotely, client.folder) == said(client.run("plan"), client.folder)
    assert remotely.err.startswith("endpoints.yaml:5:7: SS")
    lines = [json.loads(line) for line in there(client, reading, "plan", "--json").out.splitlines()]
    assert [line["diagnostic"]["range"]["start"]["line"] for line in lines] == [5]
    empty = Site(tmp_path / "empty")
    empty.folder.mkdir()
    assert said(there(empty, reading, "plan"), empty.folder) == said(empty.run("plan"), empty.folder)


def test_variables_and_targets_are_the_clients(reading: Managed, tmp_path: Path) -> None:
    text = (
        "variables: {version: {}, name: {default: none}}\n"
        "targets: {prod: {resources: {model_serving_endpoints: {a: {tags: [{key: env, value: prod}]}}}}}\n"
        "resources: {model_serving_endpoints: {a: {name: '${var.name}', config: {served_entities: "
        "[{name: e, entity_name: demo.echo, entity_version: '${var.version}'}]}}}}\n"
    )
    client = reading.client(tmp_path / "client", text)
    found = there(client, reading, "plan", "-t", "prod", "--var", "name=seven", BUNDLE_VAR_version="3").ok()
    assert '+ resource "endpoint" "seven"' in found.out
    assert '+ entity_version = "3"' in found.out
    assert '+ env = "prod"' in found.out


@pytest.mark.slow
def test_what_of_the_site_counts(site: Site, tmp_path: Path) -> None:
    site.configure(ONE, listen=ANY)
    text = (site.folder / "endpoints.yaml").read_text()
    site.write(with_site(text, providers={"docker": {"image_policy": "digest"}}))
    with managed(site, "--no-controller") as server:
        client = server.client(tmp_path / "client", with_site(text, models={}))
        assert "SS201" in there(client, server, "plan").err  # its own models count, and it has none
        image = {"engine": "vllm", "image": "vllm/vllm-openai:v1", "source": "hf://a/b"}
        models = {"demo.echo": {"versions": {"1": image}}}
        (client.folder / "endpoints.yaml").write_text(with_site(text, models=models))
        refused = there(client, server, "plan")
    assert refused.code == 1
    assert re.match(r"endpoints\.yaml:\d+:\d+: SS193 ", refused.err), refused.err  # the server's policy


def test_the_servers_tokens_tell_whom_a_limit_is_for(reading: Managed, tmp_path: Path) -> None:
    text = (reading.site.folder / "endpoints.yaml").read_text()
    written = yaml.safe_load(text)
    del written["servestate"]["access"]
    block = next(iter(written["resources"]["model_serving_endpoints"].values()))
    limit = {"renewal_period": "minute", "key": "user", "principal": "ann", "calls": 1}
    block["ai_gateway"] = {"rate_limits": [limit]}
    client = reading.client(tmp_path / "client", yaml.safe_dump(written))
    assert "SS149" in client.run("validate").ok().err
    assert "SS149" not in there(client, reading, "plan").ok().err


def test_the_servers_part_of_the_site_is_warned_of(reading: Managed, tmp_path: Path) -> None:
    text = with_site((reading.site.folder / "endpoints.yaml").read_text(), router={"listen": "127.0.0.1:9"})
    client = reading.client(tmp_path / "client", text)
    found = there(client, reading, "plan").ok()
    assert found.err == (
        "warning: SS619 servestate.router of this configuration counts for nothing here\n"
        "  fix: with --server that is the server's own; change it there\n"
    )


def test_who_may_and_who_did(site: Site, tmp_path: Path) -> None:
    assert {row.need for row in ROWS} == {Need.APPLY}
    site.configure(ONE, listen=ANY)
    access = tokens({"ana": ["apply"], "bob": ["view", "manage", "create"]})
    site.write(with_site((site.folder / "endpoints.yaml").read_text(), access=access))
    with managed(site) as server:
        client = server.client(tmp_path / "client")
        for verb, token, why in (
            ("status", "", "SS614 {} asks for a token\n"),
            ("plan", "wrong", "SS614 {} does not know this token\n"),
            (
                "plan",
                "token-of-bob",
                "SS615 {} does not allow that: this needs a token with the right 'apply'\n",
            ),
        ):
            refused = there(client, server, verb, SERVESTATE_TOKEN=token)
            assert (refused.code, refused.out) == (1, "")
            assert refused.err.startswith(why.format(server.url))
        there(
            client, server, "apply", "--auto-approve", SERVESTATE_TOKEN="", DATABRICKS_TOKEN="token-of-ana"
        ).ok()
    history = site.state().endpoints["solo"].history
    assert history is not None
    assert (history.created.by, history.created.through) == ("ana", "apply")


def test_only_plans_of_the_server_are_carried_out(reading: Managed, tmp_path: Path) -> None:
    client = reading.client(tmp_path / "client")
    client.run("plan", "--out=plan.json").ok()
    refused = there(client, reading, "apply", "plan.json")
    assert refused.code == 1
    assert "SS620" in refused.err
    assert "has not made that plan" in refused.err
    assert not reading.site.state().endpoints


@pytest.mark.slow
def test_a_changed_configuration_makes_a_saved_plan_stale(reading: Managed, tmp_path: Path) -> None:
    client = reading.client(tmp_path / "client")
    there(client, reading, "plan", "--out=plan.json").ok()
    rewrite(client, "name: solo", "name: other")
    stale = there(client, reading, "apply", "plan.json")
    assert stale.code == 3
    assert "the configuration has changed since the plan was made" in stale.err
    assert f"servestate plan --server {reading.url} --out=FILE" in stale.err


@pytest.mark.slow
def test_the_lock(server: Managed, tmp_path: Path) -> None:
    client = server.client(tmp_path / "client")
    there(client, server, "apply", "--auto-approve").ok()
    rewrite(client, "entity_version: '1'", "entity_version: '2'")
    store = SqliteStore(server.site.database, is_gone)
    owner = Owner("apply", "carl", "elsewhere", owner_of_this_process("apply").process)
    lock, _ = store.acquire(owner, time.time())
    refused = there(client, server, "apply", "--auto-approve")
    assert refused.code == 6
    assert "the state is locked by carl@elsewhere (apply, pid" in refused.err
    waited = there(client, server, "apply", "--auto-approve", "--lock-timeout=0.5", "--json")
    assert waited.code == 6
    assert "servestate: waiting up to 0.5 s for the lock of carl@elsewhere (apply)" in waited.err
    assert json.loads(waited.out.splitlines()[-1])["lock"]["id"] == lock.id
    store.release(lock)
    there(client, server, "apply", "--auto-approve", "--lock-timeout=5").ok()
    assert server.site.state().endpoints["solo"].config_version == 2


@pytest.mark.slow
def test_blocked_steps_stop_it_before_anything_is_asked(server: Managed, tmp_path: Path) -> None:
    client = server.client(tmp_path / "client")
    protected = "      name: solo\n      lifecycle: {prevent_destroy: true}\n"
    rewrite(client, "      name: solo\n", protected)
    there(client, server, "apply", "--auto-approve").ok()
    there(client, server, "plan", "--destroy", "--out=plan.json").ok()
    blocked = there(client, server, "destroy", "--auto-approve")
    assert blocked.code == 3
    assert "SS304" in blocked.err
    assert there(client, server, "apply", "plan.json").code == 3


@pytest.mark.slow
def test_another_bundle_leaves_these_endpoints_alone(server: Managed, tmp_path: Path) -> None:
    there(server.client(tmp_path / "one"), server, "apply", "--auto-approve").ok()
    text = only_endpoints((server.site.folder / "endpoints.yaml").read_text())
    second = "bundle: {name: second}\n" + text.replace("name: solo", "name: mine").replace(
        "name: elsewhere", "name: yours"
    )
    other = server.client(tmp_path / "two", second)
    there(other, server, "apply", "--auto-approve").ok()
    assert sorted(server.site.state().endpoints) == ["elsewhere", "mine", "solo", "yours"]
    there(other, server, "destroy", "--auto-approve").ok()
    assert sorted(server.site.state().endpoints) == ["elsewhere", "solo"]
    gone = Site(tmp_path / "gone", other.env)
    gone.folder.mkdir()
    there(gone, server, "destroy", "--auto-approve").ok()
    assert not server.site.state().endpoints


@pytest.mark.slow
def test_a_split_that_moves(server: Managed, tmp_path: Path) -> None:
    client = server.client(tmp_path / "client")
    there(client, server, "apply", "--auto-approve").ok()
    engines = server.site.engines()
    server.site.configure({**BOTH, "solo": {"only": local("1", 90), "more": local("2", 10)}}, listen=ANY)
    moved = only_endpoints((server.site.folder / "endpoints.yaml").read_text())
    (client.folder / "endpoints.yaml").write_text(moved)
    there(client, server, "apply", "--auto-approve").ok()
    assert engines.items() <= server.site.engines().items()
    assert [t.weight for t in server.site.state().endpoints["solo"].targets] == [90, 10]


def test_no_documents_are_not_a_bundle_without_endpoints(reading: Managed) -> None:
    request = urllib.request.Request(f"{reading.url}/api/servestate/v1/plans", b"{}", AUTHORIZATION)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    with refused.value as answer:
        assert json.load(answer)["message"] == "there are no documents to plan for"
