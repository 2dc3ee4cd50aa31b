"""The parts that the container tests stand on: images, engine, faulty socket, registry."""

from __future__ import annotations

import json
import shlex
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import docker
import openai
import pytest
import requests
from docker.errors import APIError, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.types import Mount

from tests.docker import images
from tests.docker.engine import OwnEngine, Scratch, connect, machine_socket, published, until
from tests.docker.images import NOBODY, PORT
from tests.docker.registry import Registry, registry
from tests.docker.socket_proxy import Answer, Cut, Delay, SocketProxy

pytestmark = pytest.mark.slow

HARDENED: dict[str, Any] = {
    "user": NOBODY,
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 128,
    "init": True,
    "tmpfs": {"/tmp": "size=16m,mode=1777"},
    "ports": {f"{PORT}/tcp": ("127.0.0.1", None)},
}
"""What every container of the product is to wear."""


def get(url: str, key: str | None = None, data: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Status and body; 0 if nobody answers. A POST when there is data."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = None if data is None else json.dumps(data).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (urllib.error.URLError, ConnectionError):
        return 0, b""


def url_of(container: Container) -> str:
    """The container's address once it answers /health with 200."""
    url = f"http://127.0.0.1:{published(container, PORT)}"
    until(lambda: get(f"{url}/health")[0] == 200, f"{container.name} is ready: {container.logs()!r}", 60)
    return url


def assert_hardened(container: Container) -> None:
    """By the kernel's word on the first process and on the one that it started."""
    container.reload()
    first = Path(f"/proc/{container.attrs['State']['Pid']}")
    started = (first / "task" / first.name / "children").read_text().split()
    assert started, "docker-init started nothing"
    for process in (first, *(Path("/proc") / child for child in started)):
        lines = (line.split(":") for line in (process / "status").read_text().splitlines())
        status = {name: value.split() for name, value in lines}
        assert status["Uid"] == status["Gid"] == ["65534"] * 4
        assert {status[name][0] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    assert container.exec_run(["touch", "/written"]).exit_code == 1


def test_a_missing_engine_fails_and_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.delenv("SERVESTATE_DOCKER_TESTS", raising=False)
    with pytest.raises(AssertionError, match="dockerd &"):
        connect()
    monkeypatch.setenv("SERVESTATE_DOCKER_TESTS", "off")
    with pytest.raises(pytest.skip.Exception):
        connect()


def test_a_second_build_finds_the_first(engine: docker.DockerClient) -> None:
    first = [engine.images.get(make(engine)).id for make in images.ALL]
    assert [engine.images.get(make(engine)).id for make in images.ALL] == first


def test_tiny_runs_hardened(scratch: Scratch, tiny: str) -> None:
    container = scratch.run(tiny, mem_limit="64m", **HARDENED)
    assert get(f"{url_of(container)}/health") == (200, b"ok")
    assert_hardened(container)
    container.stop(timeout=5)
    assert container.wait()["StatusCode"] == 143


def test_the_double_speaks_as_an_engine(scratch: Scratch, engine_double: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("of-the-instance")
    mount = Mount("/run/key", str(key), type="bind", read_only=True)
    flags = ("--api-key-file", "/run/key", "--log", "a line", "another")
    container = scratch.run(engine_double, *flags, mem_limit="128m", mounts=[mount], **HARDENED)
    url = url_of(container)
    assert_hardened(container)
    assert container.logs(stdout=False) == b"a line\nanother\n"
    assert get(f"{url}/v1/models")[0] == 401
    with openai.OpenAI(base_url=f"{url}/v1", api_key="of-the-instance") as client:
        assert [model.id for model in client.models.list()] == ["double"]
        asked: Any = {"model": "double", "messages": [{"role": "user", "content": "count"}]}
        whole = client.chat.completions.create(**asked)
        assert whole.choices[0].message.content == "one two three"
        parts = [
            part.choices[0].delta.content for part in client.chat.completions.create(**asked, stream=True)
        ]
        assert parts == ["one ", "two ", "three"]
        assert client.completions.create(model="double", prompt="x").choices[0].text == "one two three"
        vectors = client.embeddings.create(model="double", input=["x", "y"], encoding_format="float").data
        assert [vector.embedding for vector in vectors] == [[0.25, -0.5, 1.0]] * 2
    completion = (f"{url}/v1/completions", "of-the-instance", {"prompt": "x"})
    assert get(f"{url}/pause", data={})[0] == 200
    assert get(*completion)[0] == 503
    assert get(f"{url}/resume", data={})[0] == 200
    assert get(*completion)[0] == 200


@pytest.mark.parametrize(
    ("flags", "code", "killed_for_memory"),
    [("--exit-after 0.2 --exit-code 7", 7, False), ("--oom", 137, True)],
)
def test_the_double_dies_as_told(
    scratch: Scratch, engine_double: str, flags: str, code: int, killed_for_memory: bool
) -> None:
    container = scratch.run(
        engine_double, *shlex.split(flags), mem_limit="64m", memswap_limit="64m", **HARDENED
    )
    assert container.wait(timeout=30)["StatusCode"] == code
    container.reload()
    assert container.attrs["State"]["OOMKilled"] is killed_for_memory


def test_the_double_is_ready_late_and_ends_only_by_force(scratch: Scratch, engine_double: str) -> None:
    container = scratch.run(engine_double, "--ready-after", "1.5", "--ignore-sigterm", **HARDENED)
    health = f"http://127.0.0.1:{published(container, PORT)}/health"
    until(lambda: get(health)[0] == 503, "it answers that it is loading")
    url_of(container)
    container.stop(timeout=1)
    assert container.wait()["StatusCode"] == 137


def test_a_real_model_answers_from_a_hardened_container(scratch: Scratch, llamacpp: str) -> None:
    mount = Mount("/models/weights.gguf", str(images.weights()), type="bind", read_only=True)
    flags = (
        f"--model /models/weights.gguf --alias gemma --host 0.0.0.0 --port {PORT} --ctx-size 512 --threads 2"
    )
    container = scratch.run(llamacpp, *flags.split(), mem_limit="2g", mounts=[mount], **HARDENED)
    url = url_of(container)
    assert_hardened(container)
    asked = {"prompt": "Monday, Tuesday, Wednesday,", "max_tokens": 6, "temperature": 0}
    status, body = get(f"{url}/v1/completions", data=asked)
    assert status == 200
    assert "Thursday" in json.loads(body)["choices"][0]["text"]


@pytest.fixture
def proxy(engine: docker.DockerClient, socket_folder: Path) -> Iterator[SocketProxy]:
    """In front of the machine's engine."""
    with SocketProxy(socket_folder / "proxy.sock", machine_socket()).running() as made:
        yield made


@pytest.fixture
def behind(proxy: SocketProxy) -> Iterator[Scratch]:
    """As `scratch`, through the proxy."""
    client = docker.DockerClient(base_url=proxy.host, version="auto", timeout=30)
    made = Scratch(client)
    try:
        yield made
    finally:
        proxy.rules.clear()
        made.clear()
        client.close()


def test_a_lost_reply_leaves_a_container(
    proxy: SocketProxy, behind: Scratch, engine: docker.DockerClient, tiny: str
) -> None:
    """T25's fault: the caller hears of a broken connection, and the container is there."""
    proxy.fault("POST", "/containers/create", Cut())
    with pytest.raises(requests.ConnectionError):
        behind.create(tiny)
    (left,) = engine.containers.list(all=True, filters={"label": f"servestate.test={behind.mark}"})
    assert left.status == "created"
    assert behind.create(tiny).id != left.id
    assert proxy.count("POST", "/containers/create") == 2


def test_the_proxy_answers_and_delays_as_told(proxy: SocketProxy, behind: Scratch, tiny: str) -> None:
    container = behind.create(tiny)
    proxy.fault("POST", "/start", Answer(500, "no space left on device"), nth=2)
    container.start()
    with pytest.raises(APIError, match="no space left on device"):
        container.start()
    container.start()
    assert [bool(asked.fault) for asked in proxy.asked if asked.target.endswith("/start")] == [
        False,
        True,
        False,
    ]
    proxy.fault("GET", "/_ping", Delay(0.5))
    client = docker.DockerClient(base_url=proxy.host, version="1.41", timeout=0.2)  # type: ignore[arg-type]
    with pytest.raises(requests.ReadTimeout):
        client.ping()
    client.close()


def test_the_proxy_carries_stdin_and_its_end(behind: Scratch, tiny: str) -> None:
    """A hijacked connection: half of it closes, the other half still speaks."""
    made = behind.client.api.create_container(
        tiny, ["wc", "-c"], stdin_open=True, labels=behind.labels, host_config={"Init": True}
    )
    attached = behind.client.api.attach_socket(made, params={"stdin": 1, "stdout": 1, "stream": 1})
    behind.client.api.start(made)
    attached._sock.sendall(b"s" * 300_000)
    attached._sock.shutdown(socket.SHUT_WR)
    header_and_line = attached.read(8) + attached.read(7)
    assert header_and_line == b"\x01\0\0\0\0\0\0\x07" + b"300000\n"
    assert behind.client.api.wait(made)["StatusCode"] == 0
    attached._sock.close()
    attached.close()


def test_the_proxy_carries_events_as_they_come(behind: Scratch, tiny: str) -> None:
    stream = behind.client.events(decode=True, filters={"label": f"servestate.test={behind.mark}"})
    seen: list[str] = []
    thread = Thread(target=lambda: seen.extend(event["Action"] for event in stream))
    thread.start()
    behind.run(tiny, "true", init=True).wait()
    until(lambda: "die" in seen, "an event of its end")
    stream.close()
    thread.join(10)
    assert not thread.is_alive()
    assert seen == ["create", "start", "die"]


def test_containers_outlive_a_killed_engine(own_engine: OwnEngine) -> None:
    """M4. And the loopback port is dockerd's own: it is closed until dockerd is back."""
    client = own_engine.client()
    try:
        container = Scratch(client).run(images.tiny(client), **HARDENED)
        url, before = url_of(container), identity(container)
        address = container.attrs["NetworkSettings"]["IPAddress"]
        own_engine.kill()
        assert not own_engine.answers()
        assert get(f"{url}/health")[0] == 0
        assert get(f"http://{address}:{PORT}/health") == (200, b"ok")
        own_engine.start()
        assert identity(container) == before
        assert url_of(container) == url
    finally:
        client.close()


def test_a_frozen_engine_answers_later(own_engine: OwnEngine) -> None:
    own_engine.pause()
    assert not own_engine.answers()
    own_engine.resume()
    until(own_engine.answers, "it answers again")


def test_without_live_restore_containers_end_with_their_engine(
    engine: docker.DockerClient, socket_folder: Path
) -> None:
    with OwnEngine(socket_folder / "engine") as own:
        client = own.client()
        container = Scratch(client).run(images.tiny(client), init=True)
        own.stop()
        own.start()
        container.reload()
        assert (container.status, container.attrs["State"]["ExitCode"]) == ("exited", 143)
        client.close()
    assert own.leftovers() == []
    engine.ping()  # the machine's own is untouched


def identity(container: Container) -> tuple[str, str, int]:
    """What makes a container's run the same run."""
    container.reload()
    state = container.attrs["State"]
    return str(container.id), state["StartedAt"], state["Pid"]


def test_a_pushed_image_is_pulled_by_digest(
    local_registry: Registry, engine: docker.DockerClient, tiny: str
) -> None:
    pinned = local_registry.push(engine, tiny)
    with pytest.raises(ImageNotFound):
        engine.images.get(pinned)
    engine.api.pull(pinned)
    assert engine.images.get(pinned).id == engine.images.get(tiny).id
    engine.images.remove(pinned)
    local_registry.stop()
    with pytest.raises(APIError, match="connection refused"):
        engine.api.pull(pinned)


def test_a_registry_with_accounts(engine: docker.DockerClient, tiny: str, tmp_path: Path) -> None:
    with registry(tmp_path / "registry", authenticated=True) as asked:
        pinned = asked.push(engine, tiny)
        with pytest.raises((APIError, NotFound), match="no basic auth credentials"):
            engine.api.pull(pinned)
        engine.api.pull(pinned, auth_config=asked.auth_config)
        engine.images.remove(pinned)
