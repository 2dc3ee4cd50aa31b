"""Hosts that answer, that do not, and that hang; several of them; the images and GPUs they have."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.launch import Placement
from servestate.planner.spec.site import DockerProvider as Settings
from servestate.planner.surroundings import ImageFacts
from servestate.providers.docker import DockerProvider, api, images
from servestate.providers.docker.images import Progress
from servestate.providers.protocol import PermanentError, Ready, Surveyor, TransientError, Watcher
from servestate.providers.secrets import EnvSecrets
from tests.docker.engine import OwnEngine, machine_socket
from tests.docker.registry import registry
from tests.docker.socket_proxy import Answer, SocketProxy
from tests.ports import free_port

# The SDK leaves a socket that could not be connected to the garbage collector, which says so.
LEFT_TO_THE_COLLECTOR = pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning")


def test_the_provider_surveys_and_hears():
    made = DockerProvider(Settings(), Path(), EnvSecrets({}))
    assert isinstance(made, Surveyor)
    assert isinstance(made, Watcher)


def test_the_sdk_is_imported_by_those_who_speak_to_a_host_only():
    """Making every provider of a site with containers is part of `servestate plan` without any."""
    code = (
        "import sys; from pathlib import Path\n"
        "from servestate.planner.spec.site import DockerProvider, ProcessProvider\n"
        "from servestate.providers.registry import build\n"
        "build(Path(), Path(), None, ProcessProvider(), DockerProvider())\n"
        "print(sorted({'docker', 'requests', 'urllib3', 'pynvml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_the_sdk_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(api, "find_spec", lambda name: None)
    provider = DockerProvider(Settings(), Path(), EnvSecrets({}))
    for call in (provider.observe("x"), provider.pull("local", "x", "sha256:aa", print)):
        with pytest.raises(PermanentError, match=r"SS505.*docker is not installed"):
            asyncio.run(call)


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("vllm/vllm-openai:v1", "vllm/vllm-openai"),
        ("registry:5000/a/b", "registry:5000/a/b"),
        ("registry:5000/a/b:1", "registry:5000/a/b"),
        ("a@sha256:aa", "a"),
        ("a:1@sha256:aa", "a"),
    ],
)
def test_repositories_are_read_off_names(image, repository):
    assert images.repository(image) == repository


def test_the_progress_of_a_pull_is_one_line_that_changes():
    gib, progress = 2**30, Progress()
    detail = {"current": gib, "total": 3 * gib}
    messages = [
        {"status": "Pulling from library/x", "id": "1"},
        {"status": "Already exists", "id": "a", "progressDetail": {}},
        {"status": "Pulling fs layer", "id": "b", "progressDetail": {}},
        {"status": "Downloading", "id": "b", "progressDetail": detail},
        {"status": "Downloading", "id": "b", "progressDetail": detail},
        {"status": "Download complete", "id": "b"},
        {"status": "Extracting", "id": "b", "progressDetail": {"current": 1, "total": 2}},
        {"status": "Pull complete", "id": "b"},
        {"status": "Digest: sha256:aa"},
    ]
    assert [line for message in messages if (line := progress.take(message))] == [
        "pulling 1 of 1 layers, 0.0 of 0.0 GiB",
        "pulling 1 of 2 layers, 0.0 of 0.0 GiB",
        "pulling 1 of 2 layers, 1.0 of 3.0 GiB",
        "pulling 1 of 2 layers, 3.0 of 3.0 GiB",
        "pulling 2 of 2 layers, 3.0 of 3.0 GiB",
    ]


@LEFT_TO_THE_COLLECTOR
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["no socket", "refused"])
def test_a_host_that_is_not_there_is_named_with_what_to_do(place, tiny, tmp_path, kind):
    urls = {
        "no socket": f"unix://{tmp_path}/nothing.sock",
        "refused": f"tcp://127.0.0.1:{free_port()}",
    }
    place.url = urls[kind]
    provider = place.provider()
    spec = place.spec(tiny)
    calls = (
        lambda: provider.observe(place.lineage),
        lambda: provider.launch(spec, place.marks()),
        lambda: provider.probe("local/abc/created", spec),
        lambda: provider.stop("local/abc/created", 1),
        lambda: provider.logs("local/abc/created", 1),
        lambda: provider.await_change(place.lineage),
        lambda: provider.image("local", tiny, "missing"),
        lambda: provider.pull("local", tiny, "sha256:aa", print),
    )
    began = time.monotonic()
    for call in calls:
        with pytest.raises(TransientError, match=f'host "local" .{urls[kind]}.*does not answer.*start it'):
            asyncio.run(call())
    (host,) = asyncio.run(provider.hosts("l"))
    assert urls[kind] in host.trouble
    assert time.monotonic() - began < 10
    gc.collect()


@pytest.mark.slow
def test_a_host_that_hangs_is_given_up(place, socket_folder, monkeypatch):
    """It accepts and never answers."""
    monkeypatch.setattr(api, "CONNECT_S", 1)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(socket_folder / "deaf.sock"))
        deaf.listen()
        place.url = f"unix://{socket_folder}/deaf.sock"
        began = time.monotonic()
        with pytest.raises(TransientError, match="does not answer"):
            asyncio.run(place.provider().observe(place.lineage))
        assert 0.9 < time.monotonic() - began < 5


@pytest.mark.slow
def test_a_host_behind_ssh_is_like_any_other(tmp_path):
    """The ssh client is a double that runs what a login would, here."""
    pytest.importorskip("paramiko", reason="the SDK wants it also where it runs the ssh client")
    if shutil.which("docker") is None:
        pytest.skip("no docker command here, which ssh would run")
    double = tmp_path / "bin" / "ssh"
    double.parent.mkdir()
    double.write_text('#!/bin/sh\neval "command=\\${$#}"\nexec $command\n')
    double.chmod(0o755)
    env = {**os.environ, "PATH": f"{double.parent}{os.pathsep}{os.environ['PATH']}"}
    script = Path(__file__).with_name("over_ssh.py")
    # In a process of its own: the SDK leaves every ssh client it started to the garbage collector.
    argv = [sys.executable, "-m", f"tests.providers.docker.{script.stem}", str(tmp_path)]
    done = subprocess.run(argv, env=env, cwd=script.parents[3], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def certificates(folder: Path) -> dict[str, str]:
    """An authority's certificate, and one with its key for both sides."""
    authority = ("-subj", "/CN=tests", "-addext", "basicConstraints=critical,CA:TRUE")
    both = ("-subj", "/CN=127.0.0.1", "-CA", "ca.pem", "-CAkey", "ca-key.pem")
    names = ("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name, of in (("ca", authority), ("cert", (*both, *names))):
        files = ("-keyout", f"{name}-key.pem", "-out", f"{name}.pem")
        subprocess.run(
            ["openssl", "req", "-x509", *key, *of, *files], cwd=folder, check=True, capture_output=True
        )
    return {"ca": "ca.pem", "cert": "cert.pem", "key": "cert-key.pem"}


@pytest.mark.slow
def test_a_host_behind_tls_is_like_any_other(place, tiny, socket_folder, settle):
    """The files' paths start at the bundle's folder. Without them it does not answer."""
    tls, port = certificates(place.folder), free_port()
    files = {"--tlscacert": "ca", "--tlscert": "cert", "--tlskey": "key"}
    flags = [f"{flag}={place.folder / tls[name]}" for flag, name in files.items()]
    options = ("--tlsverify", *flags, "--host", f"tcp://127.0.0.1:{port}")
    archive = b"".join(place.client.images.get(tiny).save(named=True))
    with OwnEngine(socket_folder / "engine", options=options) as own:
        client = own.client()
        try:
            client.images.load(archive)
        finally:
            client.close()
        place.url, place.secrets = f"tcp://127.0.0.1:{port}", {"SERVESTATE_SECRET_A__B": "x"}
        with pytest.raises(TransientError):
            asyncio.run(place.provider().observe(place.lineage))

        async def go():
            provider, spec = place.provider(tls=tls), place.spec(tiny, env={"KEY": "{{secrets/a/b}}"})
            launched = await provider.launch(spec, place.marks())
            assert await settle(provider, launched.handle, spec) == Ready()
            await provider.await_change(place.lineage)
            hearing = asyncio.ensure_future(provider.await_change(place.lineage))
            await asyncio.sleep(0.3)
            assert not hearing.done()
            await provider.stop(launched.handle, 1)
            await asyncio.wait_for(hearing, 1)
            assert await provider.observe(place.lineage) == []

        asyncio.run(go())


@pytest.fixture
def elsewhere(place, socket_folder):
    """A way to the machine's engine that says it is another one."""
    with SocketProxy(socket_folder / "proxy.sock", machine_socket()).running() as proxy:
        other = {**place.client.info(), "ID": "another-engine"}
        proxy.fault("GET", "/info", Answer(200, body=other), nth=None)
        yield proxy


@pytest.mark.slow
def test_two_hosts_are_one_provider(place, tiny, elsewhere, settle):
    """What is placed on one is found there, and seen once whatever its engine says of itself."""
    hosts = {"a": {"url": place.url}, "b": {"url": elsewhere.host}}
    provider, spec = place.provider(hosts=hosts), place.spec(tiny)

    async def go():
        launched = await provider.launch(spec, place.marks(placement=Placement("b")))
        assert launched.handle.startswith("b/")
        assert await settle(provider, launched.handle, spec) == Ready()
        assert len(await provider.observe(place.lineage)) == 1
        with pytest.raises(PermanentError, match=r"SS535.*only a, b"):
            await provider.launch(spec, place.marks(placement=Placement("c")))
        elsewhere.fault("GET", "/containers/json", Answer(500), nth=None)
        with pytest.raises(TransientError, match='host "b"'):
            await provider.observe(place.lineage)
        elsewhere.rules.clear()
        await provider.stop(launched.handle, 1)

    asyncio.run(go())
    assert place.all() == []


@pytest.mark.slow
def test_two_names_of_one_engine_are_refused(place, tiny, socket_folder):
    """By whatever paths its socket is reached: the container would be there twice."""
    link = socket_folder / "docker.sock"
    link.symlink_to(machine_socket())
    hosts = {"a": {"url": place.url}, "b": {"url": f"unix://{link}"}}

    async def go():
        await place.provider().launch(place.spec(tiny), place.marks())
        with pytest.raises(PermanentError, match=r"SS188.*a and b are one Docker Engine"):
            await place.provider(hosts=hosts).observe(place.lineage)

    asyncio.run(go())
    assert place.only().status == "running"


@pytest.mark.slow
def test_a_host_that_got_another_name_keeps_its_containers(place, tiny, elsewhere, settle):
    """The handles that are recorded hold the old name."""
    spec, new = place.spec(tiny), {"new": {"url": place.url}}

    async def go():
        launched = await place.provider(hosts={"old": new["new"]}).launch(
            spec, place.marks(placement=Placement("old"))
        )
        assert launched.handle.startswith("old/")
        provider = place.provider(hosts=new)
        assert await settle(provider, launched.handle, spec) == Ready()
        twice = place.provider(hosts={**new, "other": {"url": elsewhere.host}})
        with pytest.raises(PermanentError, match="SS535"):
            await twice.stop(launched.handle, 1)
        await provider.stop(launched.handle, 1)
        with pytest.raises(PermanentError, match="SS535"):
            await provider.stop(launched.handle, 1)

    asyncio.run(go())
    assert place.all() == []


def test_a_host_gets_two_pulls_at_a_time(place, monkeypatch):
    """And another host two of its own."""
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def fetch(daemon, image, digest, report):
        now[daemon.name] += 1
        most[daemon.name] = max(most[daemon.name], now[daemon.name])
        await asyncio.sleep(0.01)
        now[daemon.name] -= 1

    monkeypatch.setattr(images, "fetch", fetch)
    provider = place.provider(hosts={name: {"url": f"unix:///{name}.sock"} for name in ("a", "b")})

    async def go():
        pulls = (provider.pull(host, f"x:{n}", "sha256:aa", print) for n in range(5) for host in ("a", "b"))
        await asyncio.gather(*pulls)

    asyncio.run(go())
    assert most == {"a": 2, "b": 2}


@pytest.mark.slow
def test_gpus_that_are_declared_and_who_holds_them(place, tiny):
    declared = [{"id": "0", "memory": "80GiB", "name": "H100"}]
    (host,) = asyncio.run(place.provider(gpus=declared).hosts("l"))
    (gpu,) = host.gpus
    assert (gpu.id, gpu.memory, gpu.name, gpu.holders, host.gpu_trouble) == ("0", 80 * 2**30, "H100", (), "")
    (host,) = asyncio.run(place.provider().hosts("l"))
    assert (host.gpus, host.trouble) == ((), "")
    assert 'Docker on host "local" has no runtime for GPUs (nvidia)' in host.gpu_trouble


@pytest.mark.slow
def test_what_a_local_image_is_by_policy(place, tiny):
    provider, there = place.provider(), place.client.images.get(tiny)

    async def facts(name, pull):
        return await provider.image("local", name, pull)

    async def go():
        size = there.attrs["Size"]
        known = ImageFacts(there.id, present=True, portable=False, size=size)
        for name in (tiny, there.id):
            assert await facts(name, "missing") == await facts(name, "never") == known
        missing = await facts("servestate-test/nothing:1", "never")
        assert "is not on host" in missing.trouble
        assert "pull is never" in missing.trouble
        assert (await facts("127.0.0.1:1/nothing:1", "missing")).trouble
        assert (await facts(f"127.0.0.1:1/{tiny}", "always")).digest == ""

    asyncio.run(go())


@pytest.mark.slow
def test_an_image_is_pulled_by_digest_and_named(place, engine, tiny, tmp_path, settle):
    with registry(tmp_path / "registry") as made:
        pinned = made.push(engine, tiny)
        name, digest = f"{made.address}/pulled:1", pinned.partition("@")[2]
        provider, lines = place.provider(), []
        try:

            async def go():
                for pull in ("missing", "always"):
                    facts = await provider.image("local", name, pull)
                    assert (facts.digest, facts.portable, facts.trouble) == (digest, True, "")
                await provider.pull("local", name, digest, lines.append)
                await provider.pull("local", name, digest, lines.append)
                for pull in ("never", "missing", "always"):
                    facts = await provider.image("local", name, pull)
                    assert (facts.digest, facts.present, facts.trouble) == (digest, True, "")
                spec = replace(place.spec(name), container=replace(place.spec(name).container, digest=digest))
                launched = await provider.launch(spec, place.marks())
                assert await settle(provider, launched.handle, spec) == Ready()
                assert place.only().attrs["Config"]["Image"] == pinned
                with pytest.raises(PermanentError, match=r"SS530.*not in its registry"):
                    await provider.pull("local", f"{made.address}/other:1", digest, lines.append)
                assert (
                    "not in its registry"
                    in (await provider.image("local", f"{made.address}/other:1", "missing")).trouble
                )

            asyncio.run(go())
            assert all(line.startswith("pulling ") for line in lines)
            place.clear()
            made.stop()
            trouble = asyncio.run(provider.image("local", name, "always")).trouble
            assert "cannot be reached" in trouble
            with pytest.raises(TransientError, match="cannot be reached"):
                asyncio.run(provider.pull("local", name, f"sha256:{'1' * 64}", lines.append))
        finally:
            place.clear()
            for reference in (name, pinned):
                if engine.images.list(filters={"reference": reference}):
                    engine.images.remove(reference)


@pytest.mark.slow
def test_a_registry_that_wants_a_login_says_so(place, engine, tiny, tmp_path):
    with registry(tmp_path / "registry", authenticated=True) as made:
        pinned = made.push(engine, tiny)
        name = f"{made.address}/pulled:1"
        try:
            trouble = asyncio.run(place.provider().image("local", name, "always")).trouble
            assert "refuses this user" in trouble
            with pytest.raises(PermanentError, match=r"SS533.*refuses"):
                asyncio.run(place.provider().pull("local", name, f"sha256:{'1' * 64}", print))
        finally:
            if engine.images.list(filters={"reference": pinned}):
                engine.images.remove(pinned)
