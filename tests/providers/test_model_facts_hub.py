"""Facts of models on a hub: its cache on disk, ranged requests, redirects, refusals, a network in trouble.

The hub is a real HTTP server on loopback that behaves as the Hugging Face hub does, or as a test bends it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from servestate.providers.model_facts import read_model_facts
from servestate.providers.protocol import PermanentError, TransientError
from servestate.providers.secrets import Secret
from tests.providers.model_heads import LLAMA_8B, TINY_GGUF, gguf_head, safetensors_head, write_safetensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HEAD = safetensors_head({"a": ("BF16", [1000], 2000)})
TOKEN = Secret("hf_quite_secret")


@dataclass
class FakeHub:
    """One server. `files` maps a file's path in the model acme/tiny to its head and its size; `elsewhere` is
    another server that file contents are redirected to."""

    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    elsewhere: FakeHub | None = None
    needs_token: bool = False
    knows_ranges: bool = True
    status: int = 0  # answers everything with it
    code: str = ""  # with this X-Error-Code
    redirects_to_itself: bool = False
    cuts_at: int | None = None  # bytes of a body after which the connection ends
    delay_s: float = 0.0  # before the head of an answer
    drip_s: float = 0.0  # between the bytes of a body
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # path, range, authorization
    sent: int = 0
    url: str = ""

    def add(self, name: str, head: bytes, size: int | None = None) -> None:
        self.files[name] = (head, size if size is not None else len(head))

    @property
    def environ(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": "/nowhere"}

    def read(self, source: str = "hf://acme/tiny", **options):
        return read_model_facts(source, Path("/"), **{"environ": self.environ, **options})


class Answers(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.hub
        given = self.headers
        hub.asked.append((self.path, given.get("Range", ""), given.get("Authorization", "")))
        time.sleep(hub.delay_s)
        if hub.redirects_to_itself:
            return self.empty(307, {"Location": self.path})
        if hub.status:
            return self.empty(hub.status, {"X-Error-Code": hub.code})
        if hub.needs_token and given.get("Authorization") != "Bearer hf_quite_secret":
            return self.empty(401, {"X-Error-Code": "RepoNotFound"})
        if self.path == "/api/models/acme/tiny/revision/main":
            listed = {"siblings": [{"rfilename": name} for name in hub.files]}
            return self.content(json.dumps(listed).encode(), None)
        match = re.fullmatch(r"/acme/tiny/resolve/(main|v1)/(.+)|/content/(.+)", self.path.partition("?")[0])
        name = (match[2] or match[3]) if match else ""
        if name not in hub.files:
            return self.empty(404, {"X-Error-Code": "EntryNotFound"})
        if hub.elsewhere is not None and not name.endswith(".json"):
            return self.empty(302, {"Location": f"{hub.elsewhere.url}/content/{name}?signature=x"})
        return self.content(*hub.files[name])

    def empty(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def content(self, head: bytes, size: int | None) -> None:
        size = len(head) if size is None else size
        first, last = 0, size - 1
        if self.hub.knows_ranges and (
            match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        ):
            first, last = int(match[1]), min(int(match[2]), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        body = (head + bytes(max(0, min(last + 1, 1 << 20) - len(head))))[first : last + 1]
        self.body(body if self.hub.cuts_at is None else body[: self.hub.cuts_at])

    def body(self, body: bytes) -> None:
        step = 1 if self.hub.drip_s else max(1, len(body))
        try:
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
                self.hub.sent += step
                time.sleep(self.hub.drip_s)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the reader had enough


@pytest.fixture
def start_hub() -> Iterator:
    """Starts servers; all end with the test."""
    running = []

    def start(**behaviour) -> FakeHub:
        hub = FakeHub(**behaviour)
        handler = type("Handler", (Answers,), {"hub": hub})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        running.append((server, thread))
        return hub

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(start_hub) -> FakeHub:
    """A hub with the model acme/tiny: one safetensors file of 2,000 bytes of weights."""
    made = start_hub()
    made.add("config.json", json.dumps(LLAMA_8B).encode())
    made.add("model.safetensors", HEAD, len(HEAD) + 2000)
    return made


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of these tests leaves the machine, whatever proxy its environment names."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_only_heads_are_fetched(hub: FakeHub) -> None:
    facts = hub.read()
    assert (facts.weight_bytes, facts.parameters, facts.dtype) == (2000, 1000, "bfloat16")
    assert (facts.layers, facts.architecture) == (32, "LlamaForCausalLM")
    assert all(ranged.startswith("bytes=") for _, ranged, _ in hub.asked)
    weights = [ranged for path, ranged, _ in hub.asked if path.endswith("model.safetensors")]
    assert weights == ["bytes=0-0", "bytes=0-7", f"bytes=8-{len(HEAD) - 1}"]


def test_an_index_spares_the_shards(hub: FakeHub) -> None:
    index = {"metadata": {"total_size": 16_060_522_496}, "weight_map": {"a": "model-1.safetensors"}}
    hub.add("model.safetensors.index.json", json.dumps(index).encode())
    assert hub.read().weight_bytes == 16_060_522_496
    assert not [path for path, *_ in hub.asked if path.endswith(".safetensors")]


def test_shards_are_asked_where_the_index_has_no_total(hub: FakeHub) -> None:
    shards = {str(number): f"model-{number}.safetensors" for number in range(3)}
    hub.add("model.safetensors.index.json", json.dumps({"weight_map": shards}).encode())
    for name in shards.values():
        hub.add(name, HEAD, len(HEAD) + 2000)
    assert hub.read().weight_bytes == 6000
    del hub.files["model-2.safetensors"]
    with pytest.raises(PermanentError) as caught:
        hub.read()
    assert (caught.value.code, "model-2.safetensors" in caught.value.what) == ("SS521", True)


def test_a_gguf_file_of_a_repository_and_the_only_one(hub: FakeHub) -> None:
    head = gguf_head(TINY_GGUF, {"a": (0, [100], 0)})
    hub.files.clear()
    hub.add("tiny-q8.gguf", head, len(head) + 32 + 400)
    assert hub.read().weight_bytes == 400
    hub.add("more/tiny-q4.gguf", head, len(head) + 32 + 400)
    assert hub.read("hf://acme/tiny/more/tiny-q4.gguf").weight_bytes == 400
    assert hub.read("hf://acme/tiny@v1/more/tiny-q4.gguf").layers == 2
    with pytest.raises(PermanentError, match="SS523") as caught:
        hub.read()
    assert "more/tiny-q4.gguf, tiny-q8.gguf" in caught.value.what


def test_a_revision_is_asked_for_by_the_source_else_by_the_argument(hub: FakeHub) -> None:
    hub.read("hf://acme/tiny@v1", revision="main")
    hub.read(revision="v1")
    assert {path.split("/")[4] for path, *_ in hub.asked} == {"v1"}


def test_the_token_stays_with_the_hub(hub: FakeHub, start_hub) -> None:
    hub.needs_token = True
    hub.elsewhere = start_hub()
    hub.elsewhere.add("model.safetensors", HEAD, len(HEAD) + 2000)
    assert hub.read(token=TOKEN).weight_bytes == 2000
    assert {authorization for *_, authorization in hub.asked} == {"Bearer hf_quite_secret"}
    assert len(hub.elsewhere.asked) == 3
    assert {authorization for *_, authorization in hub.elsewhere.asked} == {""}


def test_redirects_end(hub: FakeHub) -> None:
    hub.redirects_to_itself = True
    with pytest.raises(TransientError, match="redirects"):
        hub.read()
    assert len(hub.asked) == 5


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "javascript:x"])
def test_a_redirect_to_another_scheme_is_not_followed(hub: FakeHub, location: str) -> None:
    hub.elsewhere = FakeHub(url=location)
    with pytest.raises(PermanentError, match="SS522"):
        hub.read()


@pytest.mark.parametrize(
    ("status", "code", "error", "says"),
    [
        (401, "RepoNotFound", "SS522", "private, gated, or does not exist"),
        (403, "GatedRepo", "SS522", "gated"),
        (404, "RepoNotFound", "SS521", "does not know it"),
        (404, "RevisionNotFound", "SS521", 'no revision "main"'),
        (404, "", "SS523", "neither config.json"),
        (400, "", "SS522", "400"),
        (204, "", "SS522", "204"),
    ],
)
def test_refusals_say_what_to_do(hub: FakeHub, status: int, code: str, error: str, says: str) -> None:
    hub.status, hub.code = status, code
    with pytest.raises(PermanentError) as caught:
        hub.read(token=TOKEN)
    assert caught.value.code == error
    assert says in caught.value.what
    assert "hf_quite_secret" not in f"{caught.value} {caught.value.fix} {caught.value!r}"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_trouble_that_may_pass(hub: FakeHub, status: int) -> None:
    hub.status = status
    with pytest.raises(TransientError, match=str(status)):
        hub.read()


def test_nobody_there(hub: FakeHub) -> None:
    with pytest.raises(TransientError, match="ConnectError"):
        hub.read(environ={"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_CACHE": "/nowhere"})


@pytest.mark.parametrize("endpoint", ["not a url", "http://[", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(PermanentError) as caught:
        FakeHub(url=endpoint).read()
    assert (caught.value.code, "HF_ENDPOINT" in caught.value.fix) == ("SS522", True)


@pytest.mark.parametrize("cuts_at", [0, 5])
def test_an_answer_that_is_cut(hub: FakeHub, cuts_at: int) -> None:
    hub.cuts_at = cuts_at
    with pytest.raises(TransientError):
        hub.read()


def test_a_hub_that_does_not_answer(hub: FakeHub) -> None:
    hub.delay_s = 0.6
    begun = time.monotonic()
    with pytest.raises(TransientError, match="ReadTimeout"):
        hub.read(timeout_s=0.2)
    assert time.monotonic() - begun < 0.6


def test_an_answer_that_drips(hub: FakeHub) -> None:
    """Every byte comes in time, the whole never would."""
    hub.drip_s = 0.02
    begun = time.monotonic()
    with pytest.raises(TransientError, match=r"took more than 0\.2 s"):
        hub.read(timeout_s=0.2)
    assert time.monotonic() - begun < 1


def test_a_hub_without_ranges_is_read_from_the_start_only(hub: FakeHub) -> None:
    hub.knows_ranges = False
    hub.add("model.safetensors", HEAD, 1 << 34)
    with pytest.raises(TransientError, match="not the part that was asked for"):
        hub.read()
    assert hub.sent < 16_000_000


@pytest.mark.parametrize("head", [b"", (1 << 62).to_bytes(8, "little"), b"<html>not found</html>"])
def test_hostile_files_of_a_hub(hub: FakeHub, head: bytes) -> None:
    hub.add("model.safetensors", head)
    with pytest.raises((PermanentError, TransientError)) as caught:
        hub.read()
    assert "model.safetensors" in str(caught.value)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """The model acme/tiny in a cache under `tmp_path`, its main branch known."""
    root = tmp_path / "hub" / "models--acme--tiny"
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    (root / "blobs").mkdir()
    (root / "blobs" / "abc").write_text(json.dumps(LLAMA_8B))
    (folder / "config.json").symlink_to(root / "blobs" / "abc")
    write_safetensors(folder / "model.safetensors", {"a": ("BF16", [4], 8)})
    return folder


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_the_cache_is_read_first(hub: FakeHub, snapshot: Path, revision: str) -> None:
    place = snapshot.parents[2]
    homes = ({"HF_HUB_CACHE": str(place)}, {"HF_HOME": str(place.parent)})
    for environ in homes:
        facts = hub.read(revision=revision, environ={"HF_ENDPOINT": hub.url, **environ})
        assert facts.weight_bytes == 8
    assert hub.asked == []


def test_the_default_place_of_the_cache(snapshot: Path, tmp_path: Path) -> None:
    home = tmp_path / "home" / ".cache" / "huggingface"
    home.mkdir(parents=True)
    (home / "hub").symlink_to(snapshot.parents[2])
    environ = {"HOME": str(tmp_path / "home")}
    assert read_model_facts("hf://acme/tiny", Path("/"), offline=True, environ=environ).weight_bytes == 8


def test_half_a_download_is_completed_by_the_hub(hub: FakeHub, snapshot: Path) -> None:
    (snapshot / "model.safetensors").unlink()
    environ = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(snapshot.parents[2])}
    assert hub.read(environ=environ).weight_bytes == 2000


@pytest.mark.parametrize(("offline", "variable"), [(True, "0"), (False, "1"), (False, "true")])
def test_offline_asks_nobody(hub: FakeHub, offline: bool, variable: str) -> None:
    with pytest.raises(PermanentError) as caught:
        hub.read(offline=offline, environ={**hub.environ, "HF_HUB_OFFLINE": variable})
    assert caught.value.code == "SS524"
    assert hub.asked == []


@pytest.mark.parametrize("ref", ["../../../../etc", "main\n", "", "0123"])
def test_a_ref_that_is_no_commit_leads_nowhere(snapshot: Path, ref: str, tmp_path: Path) -> None:
    (snapshot.parents[1] / "refs" / "main").write_text(ref)
    environ = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    with pytest.raises(PermanentError, match="SS524"):
        read_model_facts("hf://acme/tiny", Path("/"), offline=True, environ=environ)
