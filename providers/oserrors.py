"""Errors of the operating system as the two kinds that a provider may raise."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servestate.providers.protocol import PermanentError, TransientError

# A person has to act on these; the others (too many open files, no memory) may pass.
_PERMANENT = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG,
}  # fmt: skip


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Raise PermanentError SS504 or TransientError instead of OSError. `folder` is named where the error
    itself names no place."""
    try:
        yield
    except OSError as error:
        what = f"cannot use {error.filename or folder}: {error.strerror or error}"
        if error.errno in _PERMANENT:
            raise PermanentError("SS504", what, "free space there, or make it writable") from error
        raise TransientError(what) from error
