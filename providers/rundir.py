"""The run directory: one folder per instance with its record, its exit record and its log.

    <address>-<hash>/run.json           what was launched; there from before it starts until it was stopped
    <address>-<hash>/exit.NONCE.json    how that launch ended, written by its shim
    <address>-<hash>/ended.json         the record of the last one that was stopped, for its log
    <address>-<hash>/log, log.1         output of this launch and of the one before

Anything here may be missing, half written or from another boot: what cannot be read counts as not there,
and whether something runs is asked of the kernel, never of a file.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servestate.planner.address import InstanceAddress, parse_instance
from servestate.planner.launch import LOCAL
from servestate.providers import labels
from servestate.providers.engines.engine import KEY_FILE
from servestate.providers.identity import Identity, parse
from servestate.providers.labels import Worn
from servestate.providers.protocol import Marks, TransientError

KEPT_FOLDERS = 50
"""Folders of stopped instances that are kept for their logs."""
LOCK_TIMEOUT_S = 30.0
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Run:
    """One launch: its shim's identity and its marks."""

    shim: Identity
    worn: Worn

    @property
    def handle(self) -> str:
        """The provider's handle of it."""
        return str(self.shim)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.worn.port}"


@dataclass(frozen=True, slots=True)
class Exit:
    """How a launch ended: with a code or by a signal, and the last lines it printed, secrets masked.
    `started` is false when the launcher died before it gave the word to start."""

    code: int | None
    signal: int | None
    started: bool
    tail: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one instance."""

    path: Path

    @property
    def log(self) -> Path:
        """Output of the current launch."""
        return self.path / "log"

    def make(self) -> None:
        """Create it, for this user only."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Hold the folder against other launches of the same address, in this process or any other."""
        fd = await self._lock()
        try:
            yield
        finally:
            os.close(fd)

    async def _lock(self) -> int:
        for _ in range(int(LOCK_TIMEOUT_S / 0.02)):
            self.make()
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(fd, self.path):  # else it was pruned between open and lock
                    return fd
            os.close(fd)
            await asyncio.sleep(0.02)
        raise TransientError(
            f"another servestate has been launching in {self.path} for {LOCK_TIMEOUT_S:.0f} s"
        )

    def rotate_log(self) -> None:
        """Keep the log of the launch before as log.1."""
        with suppress(FileNotFoundError):
            self.log.replace(self.path / "log.1")

    def write_run(self, run: Run) -> None:
        """Record a launch, durably."""
        write_atomically(self.path / "run.json", _run_to_json(run))

    def write_key(self, text: str) -> Path:
        """Write the file that an engine reads its key from, for this user only."""
        path = self.path / KEY_FILE
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        return path

    def run(self) -> Run | None:
        """The launch on record, None once it was stopped."""
        return _run_from_json(_read_json(self.path / "run.json"))

    def ended(self) -> Run | None:
        """The launch that was stopped last."""
        return _run_from_json(_read_json(self.path / "ended.json"))

    def exit(self, nonce: str) -> Exit | None:
        """How that launch ended; None while it runs, or when nothing could be written."""
        return _exit_from_json(_read_json(self.path / f"exit.{nonce}.json"))

    def mark_ended(self) -> None:
        """Keep the record for its log only: from here on nothing of it is reported."""
        with suppress(FileNotFoundError):
            (self.path / "run.json").replace(self.path / "ended.json")
        self._forget_exits()

    def clear(self) -> None:
        """Remove the record of a launch that is over or never took place."""
        (self.path / "run.json").unlink(missing_ok=True)
        self._forget_exits()

    def _forget_exits(self) -> None:
        for stale in self.path.glob("exit.*"):
            stale.unlink(missing_ok=True)

    def tail(self, lines: int, before: bool = False) -> list[str]:
        """The last lines of the log, or of the launch before."""
        return tail_of(self.path / "log.1" if before else self.log, lines)


@dataclass(frozen=True, slots=True)
class RunDir:
    """All instance folders of a site."""

    root: Path

    def folder(self, lineage: str, address: InstanceAddress) -> Folder:
        """The folder of an instance. The hash keeps apart what looks the same once cleaned of odd
        characters, and equal addresses of different lineages."""
        clean = re.sub(r"[^A-Za-z0-9._-]", "_", str(address))[:80]
        mark = hashlib.sha256(f"{lineage}\n{address}".encode()).hexdigest()[:8]
        return Folder(self.root / f"{clean}-{mark}")

    def folders(self) -> Iterator[Folder]:
        """Every folder there is."""
        with suppress(OSError):
            yield from (Folder(path) for path in sorted(self.root.iterdir()) if path.is_dir())

    def runs(self) -> Iterator[Run]:
        """Every launch on record that was not stopped."""
        yield from (run for folder in self.folders() if (run := folder.run()) is not None)

    def find(self, handle: str) -> tuple[Folder, Run] | None:
        """The launch with this handle, stopped ones included."""
        for folder in self.folders():
            for run in (folder.run(), folder.ended()):
                if run is not None and run.handle == handle:
                    return folder, run
        return None

    def prune(self) -> None:
        """Remove the oldest folders of stopped instances beyond the number kept."""
        over = [folder for folder in self.folders() if not (folder.path / "run.json").exists()]
        over.sort(key=_age)
        for folder in over[:-KEPT_FOLDERS]:
            _remove_unless_locked(folder.path)


def write_atomically(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file that is there whole or not at all, and stays after a power cut."""
    draft = path.with_suffix(".tmp")
    with draft.open("w") as file:
        os.chmod(draft, 0o600)
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync(path.parent)


def tail_of(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of a file, [] when it cannot be read."""
    if lines <= 0:
        return []
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _age(folder: Folder) -> float:
    try:
        return folder.path.stat().st_mtime
    except OSError:
        return 0.0


def _remove_unless_locked(path: Path) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (path / "run.json").exists():
                shutil.rmtree(path)
        finally:
            os.close(fd)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _run_to_json(run: Run) -> dict[str, Any]:
    marks = run.worn.marks
    return {
        "handle": run.handle,
        "url": run.url,
        "port": run.worn.port,
        "nonce": run.worn.nonce,
        "lineage": marks.lineage,
        "address": str(marks.address),
        "generation": marks.generation,
        "op": marks.op,
        "gpus": labels.gpus_to_text(marks.placement),
    }


def _run_from_json(value: Any) -> Run | None:
    try:
        shim = parse(value["handle"])
        address = parse_instance(value["address"])
        placement = labels.gpus_from_text(LOCAL, str(value.get("gpus", "")))
        marks = Marks(str(value["lineage"]), address, int(value["generation"]), str(value["op"]), placement)
        worn = Worn(marks, str(value["nonce"]), int(value["port"]))
    except (KeyError, TypeError, ValueError):
        return None
    return None if shim is None else Run(shim, worn)


def _exit_from_json(value: Any) -> Exit | None:
    try:
        tail = tuple(str(line) for line in value["tail"])
        return Exit(value["code"], value["signal"], bool(value["started"]), tail)
    except (KeyError, TypeError):
        return None
