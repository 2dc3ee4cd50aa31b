"""A site in a folder of its own, the real command line on it, and what the tests ask of the outcome."""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from servestate.planner.state import State
from servestate.providers import census
from servestate.providers.census import Tree
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.workspace import is_gone

CLI = (str(Path(sys.executable).with_name("servestate")),)
HERE = Path(__file__).parent
DRIVER = (sys.executable, str(HERE / "driver.py"))
"""The command line with one thing changed; see `driver.py`."""
PYTHON = ("python3", "-I", "-S")
"""How engines are started: by name, so that plans are the same on every machine."""


def until(holds: Callable[[], object], what: str, within_s: float = 20) -> None:
    """Wait for the thing itself."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.005)


def hears_interrupts() -> None:
    """Undo what a shell does to what it starts in the background, and so to all its descendants: SIGINT is
    ignored there, also by the verbs that the tests interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def local(version: str = "1", weight: int | None = None) -> dict[str, Any]:
    """A served entity that is a local process of that model version, and its traffic."""
    return {"entity_name": "demo.echo", "entity_version": version, "weight": weight}


def remote(path: str = "v1", weight: int | None = None, secret: str = "") -> dict[str, Any]:
    """A served entity that is somebody else's model, and its traffic."""
    config: dict[str, Any] = {"custom_provider_url": f"http://127.0.0.1:1/{path}"}
    if secret:
        config["bearer_token_auth"] = {"token": f"{{{{secrets/{secret}}}}}"}
    model = {"provider": "custom", "name": "m", "task": "llm/v1/chat", "custom_provider_config": config}
    return {"external_model": model, "weight": weight}


def echo(label: str, *flags: str, **settings: Any) -> dict[str, Any]:
    """A model version that the test engine serves."""
    return {"engine": "command", "argv": [*PYTHON, "engine.py", "{port}", label, *flags], **settings}


Endpoints = Mapping[str, Mapping[str, Mapping[str, Any]]]


def bundle(
    endpoints: Endpoints,
    versions: Mapping[str, Mapping[str, Any]] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    listen: str = "127.0.0.1:18080",
    **of_endpoints: Any,
) -> str:
    """YAML of these endpoints; versions 1 to 3 of the model are there unless given."""
    models = versions or {label: echo(label) for label in ("1", "2", "3")}
    site: dict[str, Any] = {
        "router": {"listen": listen},
        "management": {"listen": "127.0.0.1:0"},
        "models": {"demo.echo": {"task": "llm/v1/chat", "versions": models}},
    }
    if overrides:
        site["overrides"] = overrides
    blocks = {name.replace("-", "_"): _endpoint(name, e, of_endpoints) for name, e in endpoints.items()}
    document = {"servestate": site, "resources": {"model_serving_endpoints": blocks}}
    return yaml.safe_dump(document, sort_keys=False)


def _endpoint(
    name: str, entities: Mapping[str, Mapping[str, Any]], more: Mapping[str, Any]
) -> dict[str, Any]:
    served = [{"name": n, **{k: v for k, v in e.items() if k != "weight"}} for n, e in entities.items()]
    config: dict[str, Any] = {"served_entities": served}
    routes = [
        {"served_model_name": n, "traffic_percentage": e["weight"]}
        for n, e in entities.items()
        if e["weight"] is not None
    ]
    if routes:
        config["traffic_config"] = {"routes": routes}
    return {"name": name, "config": config, **more}


SPLIT: Endpoints = {"multi-model": {"current": local("1", 90), "challenger": local("1", 10)}}
ONE: Endpoints = {"solo": {"only": local("1")}}


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    def ok(self) -> Result:
        """This result, which must be a success."""
        assert self.code == 0, f"{self.argv} exited with {self.code}\n{self.out}\n{self.err}"
        return self


@dataclass
class Conversation:
    """A verb that runs, on a terminal or in a pipe. `seen` is what it has said so far."""

    process: subprocess.Popen[str]
    fd: int
    seen: str = ""

    def answer(self, question: str, text: str) -> None:
        """Type `text` once `question` is on the screen."""
        self.wait_for(question)
        os.write(self.fd, f"{text}\n".encode())

    def wait_for(self, text: str) -> None:
        """Read until `text` is on the screen."""
        while text not in self.seen:
            assert self._read(), f"no {text!r} in {self.seen!r}"

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            continue
        self.close()
        return self.process.wait(20)

    def close(self) -> None:
        """Stop reading, as a reader does that has seen enough."""
        os.close(self.fd)

    def _read(self) -> bool:
        ready, _, _ = select.select([self.fd], [], [], 20)
        assert ready, f"silent for 20 s after {self.seen!r}"
        try:
            chunk = os.read(self.fd, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.seen += chunk.decode(errors="replace")
        return bool(chunk)


def unprivileged() -> tuple[str, ...]:
    """A prefix under which even root has to obey file modes."""
    return () if os.geteuid() else ("setpriv", "--bounding-set=-all,+sys_ptrace", "--inh-caps=-all")


@dataclass
class Site:
    """One folder with a bundle. `servestate` runs in it, as a person would."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def configure(self, endpoints: Endpoints, **more: Any) -> None:
        """Write the bundle, and the engine beside it."""
        self.write(bundle(endpoints, **more))

    def write(self, text: str) -> None:
        """Write the bundle as it stands."""
        self.folder.mkdir(parents=True, exist_ok=True)
        engine = self.folder / "engine.py"
        if not engine.exists():
            engine.symlink_to(HERE / "engine.py")
        (self.folder / "endpoints.yaml").write_text(text)

    def run(self, *arguments: str, prefix: tuple[str, ...] = (), timeout_s: float = 60, **env: str) -> Result:
        """Run a verb to its end, without a terminal."""
        process = self.start(*arguments, prefix=prefix, **env)
        out, err = process.communicate(timeout=timeout_s)
        return Result(arguments, process.returncode, out, err)

    def start(
        self, *arguments: str, prefix: tuple[str, ...] = (), program: tuple[str, ...] = CLI, **env: str
    ) -> subprocess.Popen[str]:
        """Start a verb; it is killed at the end of the test if it still runs."""
        process = subprocess.Popen(
            (*prefix, *program, *arguments),
            cwd=self.folder,
            env={**clean_environment(), **self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hears_interrupts,
        )
        self.started.append(process)
        return process

    def apply(self, *arguments: str, **env: str) -> Result:
        """Apply without a question; must succeed."""
        return self.run("apply", "--auto-approve", *arguments, **env).ok()

    def until_drift(self, *arguments: str) -> Result:
        """The first run of the verb that tells of drift; a killed engine takes its shim a moment to see."""
        seen: list[Result] = []

        def drifted() -> bool:
            seen.append(self.run(*arguments))
            return "outside of servestate" in seen[-1].out

        until(drifted, "drift is noticed")
        return seen[-1]

    def terminal(self, *arguments: str, **env: str) -> Conversation:
        """Run a verb on a terminal."""
        ours, theirs = os.openpty()
        return self._converse(arguments, {"TERM": "xterm", **env}, theirs, ours)

    def watch(self, *arguments: str, **env: str) -> Conversation:
        """Run a verb with all its output in one pipe, to be read while it runs."""
        ours, theirs = os.pipe()
        return self._converse(arguments, env, theirs, ours)

    def _converse(
        self, arguments: tuple[str, ...], env: Mapping[str, str], theirs: int, ours: int
    ) -> Conversation:
        process = subprocess.Popen(
            (*CLI, *arguments),
            cwd=self.folder,
            env={**clean_environment(), **self.env, **env},
            stdin=theirs if os.isatty(theirs) else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            text=True,
            preexec_fn=hears_interrupts,
        )
        os.close(theirs)
        self.started.append(process)
        return Conversation(process, ours)

    @property
    def database(self) -> Path:
        return self.folder / ".servestate" / "state.db"

    @property
    def table(self) -> Path:
        return self.folder / ".servestate" / "table.json"

    def state(self) -> State:
        """The recorded state; empty where there is none."""
        return SqliteStore(self.database, is_gone).read() or State("")

    def journal(self) -> list[tuple[int, str, str]]:
        """Serial, event and address of every write there ever was."""
        entries = SqliteStore(self.database, is_gone).journal(0)
        return [(entry.serial, entry.event, entry.address) for entry in entries]

    def integrity(self) -> str:
        """SQLite's own opinion of the file."""
        connection = sqlite3.connect(self.database)
        try:
            return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
        finally:
            connection.close()

    def processes(self) -> set[int]:
        """Every process that works in this folder: shims and engines, whatever they wear. Owes nothing to
        the code under test."""
        return {int(pid) for pid in os.listdir("/proc") if pid.isdigit() and self._here(pid)}

    def trees(self) -> list[Tree]:
        """The instances that run in this folder, as the provider sees them."""
        here = self.processes()
        return [tree for tree in census.trees() if here.intersection(_pids(tree))]

    def alive(self) -> list[str]:
        """The addresses of what runs, once for every instance."""
        return sorted(str(tree.worn.marks.address) for tree in self.trees())

    def engines(self) -> dict[str, int]:
        """The engine's pid of every entity that runs."""
        return {str(t.worn.marks.address.of): t.others[0].pid for t in self.trees() if t.others}

    def doubles(self) -> str:
        """The instances that found another one of their revision alive; empty as long as all is well."""
        with suppress(FileNotFoundError):
            return (self.folder / "doubles.log").read_text()
        return ""

    def listing(self) -> dict[str, bytes]:
        """Every file below the folder with its content."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def clean_up(self) -> None:
        """End all that was started here, the instances included."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()

        def nothing_left() -> bool:
            pids = self.processes()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not pids

        until(nothing_left, f"no process is left in {self.folder}")

    def _here(self, pid: str) -> bool:
        try:
            return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(self.folder)
        except OSError:  # it has ended
            return False


def _pids(tree: Tree) -> Iterator[int]:
    yield from (one.pid for one in tree.others)
    if tree.shim is not None:
        yield tree.shim.pid


def clean_environment() -> dict[str, str]:
    """Ours, without what changes the output, and with the Python of the tests as `python3`."""
    unwanted = ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    kept = {k: v for k, v in os.environ.items() if k not in unwanted and not k.startswith("SERVESTATE_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
