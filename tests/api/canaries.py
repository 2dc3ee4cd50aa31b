"""Secrets that are made up, and the search for them in everything that was written, in every encoding."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

SLICE = 12
"""Characters of a secret that are as bad as all of it."""


@dataclass(frozen=True)
class Canary:
    """A secret. It holds characters that encodings change, unless it is a `token`, which headers carry."""

    name: str
    token: bool = False

    @property
    def value(self) -> str:
        """Always the same for a name, and like nothing else."""
        digest = hashlib.sha256(f"canary {self.name}".encode()).digest()
        text = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        return text if self.token else f'{text[:14]}+/"&{text[14:28]}\\?={text[28:]}'


def encodings(value: str) -> Iterator[str]:
    """The value as it would stand in a log, a header, a database, a URL."""
    raw = value.encode()
    yield value
    yield value[::-1]
    yield json.dumps(value)[1:-1]
    yield json.dumps(json.dumps(value))[1:-1]
    yield quote(value, safe="")
    yield "".join(f"%{byte:02x}" for byte in raw)
    yield raw.hex()
    yield raw.hex().upper()
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + raw)
        yield encoded[4 * (shift > 0) : len(encoded) // 4 * 4 - 4].decode()  # less what depends on neighbours
        yield encoded[4 * (shift > 0) : -4].decode().replace("+", "-").replace("/", "_")


def _width(text: str, value: str) -> int:
    """How much of an encoded text stands for SLICE characters."""
    return max(SLICE, SLICE * len(text) // len(value))


def needles(value: str) -> set[bytes]:
    """All that may not be found anywhere."""
    found = set()
    for text in encodings(value):
        width = _width(text, value)
        found |= {text[at : at + width].encode() for at in range(len(text) - width + 1)}
    return found


class Search:
    """Looks for the slices of many secrets at once. Secrets look like noise, so half a slice in a text, at
    every second place, is reason enough to look closer."""

    def __init__(self, canaries: Iterable[Canary]) -> None:
        self._needles = {canary.name: needles(canary.value) for canary in canaries}
        step = SLICE // 2
        self._hints = {
            name: {needle[:step] for needle in found if len(needle) >= step}
            for name, found in self._needles.items()
        }

    def __call__(self, content: bytes) -> set[str]:
        """The names of the canaries in it."""
        windows = {content[at : at + SLICE // 2] for at in range(0, len(content), 1)}
        hinted = {name for name, hints in self._hints.items() if not hints.isdisjoint(windows)}
        return {name for name in hinted if any(needle in content for needle in self._needles[name])}


def files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below it, raw: databases with their free pages and logs."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path, path.read_bytes()


def processes(pids: Iterable[int], what: str) -> Iterator[tuple[int, bytes]]:
    """`cmdline` or `environ` of each that still runs."""
    for pid in sorted(pids):
        try:
            yield pid, Path(f"/proc/{pid}/{what}").read_bytes()
        except OSError:  # it has ended
            continue


def descendants(pid: int) -> set[int]:
    """That process and all below it."""
    parents = {int(entry): _parent(entry) for entry in os.listdir("/proc") if entry.isdigit()}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return 0
