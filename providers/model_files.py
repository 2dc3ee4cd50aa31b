"""Files of a model, of which only the heads are read: on disk here, on a hub in `hub`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from servestate.providers.protocol import PermanentError

MAX_HEADER = 100_000_000
"""Bytes of the longest header that is read: the limit of the safetensors format itself."""

MAX_FILES = 1_000
"""Weight files of one model; the largest published ones have a few hundred."""

MAX_JSON = 32_000_000
"""Bytes of the longest config or index; the index of a model of 163 files has 9 million."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers of the weight files sum up to. `dtype` is the type of most bytes, "" where only a
    total is known; `parameters` is 0 then."""

    bytes: int
    parameters: int
    dtype: str


class Span(Protocol):
    """The bytes of one file."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def size(self) -> int:
        """All its bytes."""

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`, fewer only at the end. Raises PermanentError or TransientError."""


class Repository(Protocol):
    """The files of one model."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def is_local(self) -> bool:
        """Whether reading a header costs no request."""

    def names(self) -> list[str]:
        """Its files, sorted."""

    def open(self, name: str) -> Span | None:
        """The file of that name, None where there is none. Raises PermanentError or TransientError."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on disk."""

    path: Path
    size: int

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self, start: int, size: int) -> bytes:
        """See `Span.read`."""
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                # Never more than there is: a read sets aside what it is asked for.
                return file.read(max(0, min(size, self.size - start)))
        except OSError as error:
            raise unreadable(self.path, error) from error


@dataclass(frozen=True, slots=True)
class Folder:
    """A model's folder on disk, or one snapshot of a hub's cache."""

    path: Path
    is_local: bool = True

    @property
    def name(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """See `Repository.names`."""
        try:
            return sorted(entry.name for entry in self.path.iterdir())
        except OSError as error:
            raise unreadable(self.path, error) from error

    def open(self, name: str) -> LocalFile | None:
        """See `Repository.open`."""
        path = self.path / name
        try:
            return LocalFile(path, path.stat().st_size) if path.is_file() else None
        except OSError as error:
            raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> PermanentError:
    """SS520 for a file that the system does not give."""
    fix = "check the source's path; relative paths start at the bundle's folder"
    return PermanentError("SS520", f"cannot read {path}: {error.strerror or error}", fix)


def not_a_model(name: str, why: str) -> PermanentError:
    """SS523 for a file that is not what its name says."""
    fix = "download it again, or point the source at another model"
    return PermanentError("SS523", f"{name} is not a model that can be read: {why}", fix)


def read_object(span: Span) -> dict[str, Any]:
    """The JSON object in a file. Raises PermanentError SS523 for anything else in it."""
    if span.size > MAX_JSON:
        raise not_a_model(span.name, f"it has {span.size:,} bytes, more than {MAX_JSON:,}")
    return parse_object(span.read(0, span.size), span.name)


def parse_object(text: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises PermanentError SS523 for anything else, however deep it is nested."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise not_a_model(name, f"its JSON is broken ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise not_a_model(name, "its JSON is not an object")
    return found
