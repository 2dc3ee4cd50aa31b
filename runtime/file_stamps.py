"""Files that are looked at again and again: whether one has changed, and why it could not be used."""

from __future__ import annotations

import os
from pathlib import Path

FileStamp = tuple[int, int, int]
_ABSENT: FileStamp = (0, 0, 0)
_UNREAD: FileStamp = (-1, -1, -1)
"""Equal to no file's stamp."""


def stamp_of(path: Path) -> FileStamp:
    """What changes when the file does: a replaced file has another inode even within one clock tick."""
    try:
        found = os.stat(path)
    except OSError:
        return _ABSENT
    return found.st_mtime_ns, found.st_ino, found.st_size


def stamp_after(error: OSError, stamp: FileStamp) -> FileStamp:
    """What to remember of a file that could not be read. Most causes are not the file's (no descriptors
    left, a mode that is wrong for a moment) and go without its changing again: it is to be read once more
    next time. One that is missing has to come back."""
    return stamp if isinstance(error, FileNotFoundError) else _UNREAD


def reason(path: Path, error: Exception) -> str:
    """Why the file is not used, for people."""
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}"
    return f"{path}: {error}"
