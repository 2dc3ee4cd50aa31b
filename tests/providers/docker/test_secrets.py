"""T60, M5: a secret is in the engine that asked for it and nowhere else."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.providers.docker import entry
from servestate.providers.engines import llamacpp
from servestate.providers.engines.engine import ContainerCommand
from servestate.providers.protocol import Failed, PermanentError, Ready

pytestmark = pytest.mark.slow

CANARY = "canary-7f3a\n$(date)'\"\\0101 ümlaut"
TOKEN = "hf_canary-9c1d"
SECRETS = {"SERVESTATE_SECRET_A__KEY": CANARY, "SERVESTATE_SECRET_A__TOKEN": TOKEN}
ENV = {"API_KEY": "{{secrets/a/key}}", "HF_TOKEN": "{{secrets/a/token}}", "PLAIN": "x"}
MARKS = ("canary-7f3a", "canary-9c1d")


def environs(container):
    """Variables by process, as the host's kernel tells them."""
    pids = [int(row[1]) for row in container.top()["Processes"]]
    return {
        Path(f"/proc/{pid}/cmdline").read_bytes(): Path(f"/proc/{pid}/environ").read_bytes() for pid in pids
    }


@pytest.mark.parametrize("image", ["tiny", "double"])
def test_a_secret_is_in_the_engine_that_asked_for_it_and_nowhere_else(request, place, settle, image):
    reference = request.getfixturevalue(image)
    place.secrets = SECRETS
    spec = place.spec(reference, env=ENV)

    async def go():
        provider = place.provider()
        launched = await provider.launch(spec, place.marks())
        assert await settle(provider, launched.handle, spec) == Ready()
        (one,) = await provider.observe(place.lineage)
        assert not any(mark in repr((launched, one)) for mark in MARKS)

    asyncio.run(go())
    one = place.only()
    told = json.dumps(one.attrs) + one.logs().decode()
    for kept in (Path("/var/lib/docker/containers") / one.id).rglob("*"):
        told += kept.read_text(errors="replace") if kept.is_file() else ""
    seen = environs(one)
    engine = [environ for argv, environ in seen.items() if b"docker-init" not in argv]
    assert engine
    assert not any(mark in told for mark in MARKS)
    for argv, environ in seen.items():
        assert not any(mark.encode() in argv for mark in MARKS)
        if b"docker-init" in argv:
            assert b"canary" not in environ
    for environ in engine:
        variables = dict(item.partition(b"=")[::2] for item in environ.split(b"\0") if item)
        assert variables[b"API_KEY"] == CANARY.encode()
        assert variables[b"HF_TOKEN_PATH"] == f"{entry.FOLDER}/hf-token".encode()
        assert b"HF_TOKEN" not in variables
        assert b"canary-9c1d" not in environ
    token = one.exec_run(["cat", f"{entry.FOLDER}/hf-token"])
    assert token.output == TOKEN.encode()
    listed = one.exec_run(["ls", "-ln", entry.FOLDER]).output.decode()
    assert "-r--------" in listed
    assert "65534" in listed


def test_a_secret_that_an_engine_prints_is_masked(place, tiny, settle):
    place.secrets = {"SERVESTATE_SECRET_A__KEY": "canary-7f3a"}
    spec = place.spec(tiny, "sh", "-c", "echo key=$API_KEY; exit 3", env={"API_KEY": "{{secrets/a/key}}"})

    async def go():
        provider = place.provider()
        launched = await provider.launch(spec, place.marks())
        failed = await settle(provider, launched.handle, spec)
        assert isinstance(failed, Failed)
        assert "key=***" in failed.why
        assert await provider.logs(launched.handle, 5) == "key=***"
        (one,) = await provider.observe(place.lineage)
        assert "canary" not in one.why

    asyncio.run(go())


TELLS = ("sh", "-c", "echo key=$API_KEY; exit 3")
NEEDS = {"API_KEY": "{{secrets/a/key}}"}


async def ended(place, settle, spec):
    """The handle of a container that has told its secret and ended, launched by another command."""
    provider = place.provider()
    launched = await provider.launch(spec, place.marks())
    assert isinstance(await settle(provider, launched.handle, spec), Failed)
    return launched.handle


def test_another_command_masks_what_is_recorded(place, tiny, settle):
    """Every line of a secret that has several, too."""
    place.secrets = {"SERVESTATE_SECRET_A__KEY": "canary-7f3a\ncanary-9c1d"}
    spec = place.spec(tiny, "sh", "-c", 'echo "key=$API_KEY"; exit 3', env=NEEDS)

    async def go():
        handle = await ended(place, settle, spec)
        (one,) = await place.recalling(spec).observe(place.lineage)
        assert one.why.splitlines() == ["exit code 3", "| key=***", "| ***"]
        assert await place.recalling(spec).logs(handle, 5) == "key=***\n***"

    asyncio.run(go())


def test_a_log_whose_secrets_are_not_known_here_is_not_shown(place, tiny, settle):
    """Not of a recorded one whose secret is gone, and not of one that no record covers."""
    place.secrets = {"SERVESTATE_SECRET_A__KEY": "canary-7f3a"}
    spec = place.spec(tiny, *TELLS, env=NEEDS)

    async def go():
        handle = await ended(place, settle, spec)
        (stray,) = await place.provider().observe(place.lineage)
        place.secrets = {}
        recorded = place.recalling(spec)
        (one,) = await recorded.observe(place.lineage)
        probed = await place.provider().probe(handle, spec)
        said = "its log is not shown: secret {{secrets/a/key}} is not set here, so it cannot be masked"
        assert one.why == f"exit code 3\n{said}"
        assert probed == Failed("SS506", f"exit code 3\n{said}")
        assert await recorded.logs(handle, 5) == said
        assert stray.why.startswith("exit code 3\nits log is not shown: no record")

    asyncio.run(go())


def test_a_key_that_an_engine_prints_is_masked(place, tiny, settle, monkeypatch):
    """By a command that has not launched it, although the key is in no spec."""

    def container(self, spec, base_dir, key_file):
        return ContainerCommand(("sh", "-c", f"cat {key_file}; exit 3"), spec.container.port)

    monkeypatch.setattr(llamacpp.LlamaCppEngine, "container", container)
    spec = replace(place.spec(tiny), engine="llamacpp")

    async def go():
        handle = await ended(place, settle, spec)
        assert await place.recalling(spec).logs(handle, 5) == "***"

    asyncio.run(go())
    assert len(place.only().logs().strip()) == 64


def test_a_missing_secret_is_said_before_anything_is_made(place, tiny):
    with pytest.raises(PermanentError, match="SS501"):
        asyncio.run(place.provider().launch(place.spec(tiny, env=ENV), place.marks()))
    assert place.all() == []


def test_a_secret_in_the_arguments_is_refused(place, tiny):
    place.secrets = SECRETS
    with pytest.raises(PermanentError, match=r"SS503.*secret reference"):
        asyncio.run(place.provider().launch(place.spec(tiny, "--key", "{{secrets/a/key}}"), place.marks()))
    assert place.all() == []


def test_an_image_without_a_shell_takes_no_secrets(place, engine, scratch, tiny, tmp_path):
    """It is said clearly, and without secrets the image works."""
    place.secrets = SECRETS
    name = f"servestate-test/shellless:{place.lineage[:8]}"
    (tmp_path / "Dockerfile").write_text(
        f'FROM {tiny}\nRUN ["busybox", "rm", "/bin/sh"]\nCMD ["busybox", "httpd", "-f", "-p", "8000"]\n'
    )
    engine.images.build(path=str(tmp_path), tag=name, rm=True)
    try:
        with pytest.raises(PermanentError, match=r"SS532.*no /bin/sh"):
            asyncio.run(place.provider().launch(place.spec(name, env=ENV), place.marks()))
        assert place.all() == []
        asyncio.run(place.provider().launch(place.spec(name), place.marks()))
        assert place.only().status == "running"
        place.clear()
    finally:
        engine.images.remove(name, force=True)


def test_an_engine_that_takes_a_key_gets_it_as_a_file(place, double, settle, monkeypatch):
    """The double under the name of an engine that asks for a key: ready only with the right one."""

    def container(self, spec, base_dir, key_file):
        return ContainerCommand(("--api-key-file", key_file), spec.container.port)

    monkeypatch.setattr(llamacpp.LlamaCppEngine, "container", container)
    spec = replace(place.spec(double), engine="llamacpp", task="llm/v1/chat")

    async def go():
        provider = place.provider()
        launched = await provider.launch(spec, place.marks())
        assert await settle(provider, launched.handle, spec) == Ready()

    asyncio.run(go())
