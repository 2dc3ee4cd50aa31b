"""Files of lines that are renamed away when they have grown large or old enough.

A line is in the files whole or not at all: one that the disk had no room for is taken back, and the torn end
that a killed process left is cut off when the file is opened again. A file that somebody else removed or
renamed is made anew.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

_AT_ONCE_BYTES = 1 << 18
_LINES_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is full: at `max_bytes`, or with the first line after `max_age_s` (0 = never). `keep` older
    ones stay beside it, as PATH.1 (the newest) to PATH.<keep>."""

    max_bytes: int = 64 << 20
    keep: int = 5
    max_age_s: float = 0.0


class RotatingFile:
    """One such file; owned by one thread. What is no regular file (a terminal, a pipe) is not rotated, and is
    written line by line, so that those of several processes do not mix."""

    def __init__(self, path: Path, rotation: Rotation) -> None:
        self.path = path
        self._rotation = rotation
        self._fd = -1
        self._regular = True
        self._size = 0
        self._opened_at = 0.0

    def append(self, lines: deque[bytes], now: float) -> None:
        """Write lines, each with its end, taking them off the front; `now` is of a clock that never goes
        back. Raises OSError: what is left in `lines` is not in the file, not even in part."""
        self._refresh(now)
        if self._is_old(now):
            self._rotate(now)
        while lines:
            batch = self._fitting(lines)
            if not batch:
                self._rotate(now)
                continue
            self._write(b"".join(batch))
            if len(batch) == len(lines):
                lines.clear()
            else:
                for _ in batch:
                    lines.popleft()

    def close(self) -> None:
        """Give the file back; `append` would open it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _refresh(self, now: float) -> None:
        """Have the file open that is at the path, and know its size: a second process may write to it while
        one takes over from the other."""
        if self._fd >= 0 and not self._is_current():
            self.close()
        if self._fd < 0:
            self._open(now)
        elif self._regular:
            self._size = os.fstat(self._fd).st_size

    def _is_current(self) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._fd))

    def _open(self, now: float) -> None:
        self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
        self._fd = os.open(
            self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o600
        )
        status = os.fstat(self._fd)
        self._regular = stat.S_ISREG(status.st_mode) and not _is_device(self.path)
        self._size = _end_of_lines(self._fd, status.st_size) if self._regular else 0
        if self._size < status.st_size:
            os.ftruncate(self._fd, self._size)
        self._opened_at = now

    def _is_old(self, now: float) -> bool:
        age = self._rotation.max_age_s
        return bool(age and self._regular and self._size and now - self._opened_at >= age)

    def _fitting(self, lines: deque[bytes]) -> list[bytes]:
        """The next lines to write at once; none if the file is full. One that no file has room for gets one
        for itself."""
        if not self._regular:
            return [lines[0]]
        room = self._rotation.max_bytes - self._size
        several = list(islice(lines, _LINES_AT_ONCE))
        if sum(map(len, several)) <= min(room, _AT_ONCE_BYTES):
            return several
        batch: list[bytes] = []
        size = 0
        for line in several:
            size += len(line)
            if (size > room and (batch or self._size)) or (batch and size > _AT_ONCE_BYTES):
                break
            batch.append(line)
        return batch

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            written = len(data) - len(rest)
            if written and self._regular and os.fstat(self._fd).st_size == self._size + written:
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def _rotate(self, now: float) -> None:
        """Rename the file away, unless another process just did, and begin the next."""
        keep = self._rotation.keep
        if self._is_current():
            if not keep:
                self.path.unlink()
            gap = next((n for n in range(1, keep) if not _numbered(self.path, n).exists()), keep)
            for number in range(gap, 0, -1):
                newer = _numbered(self.path, number - 1) if number > 1 else self.path
                newer.replace(_numbered(self.path, number))
        self.close()
        self._open(now)


def _is_device(path: Path) -> bool:
    """Also /dev/stdout, whatever that is at the moment."""
    return path.parent == Path("/dev")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _end_of_lines(fd: int, size: int) -> int:
    """Where the last whole line ends."""
    end = size
    while end:
        start = max(end - _AT_ONCE_BYTES, 0)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def of_worker(path: Path, worker: int) -> Path:
    """The file of one worker: each has its own, worker 0 the one that was asked for. What is no regular file
    is the same for all."""
    if worker == 0 or _is_device(path) or (path.exists() and not path.is_file()):
        return path
    return path.with_name(f"{path.stem}-w{worker}{path.suffix}")
