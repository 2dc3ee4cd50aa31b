"""Why a file that is kept of requests cannot be written, and what helps."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.runtime.router.records.keeping import AccessLogConfig

_FOLDER_IS_A_FILE = "one of its folders is a file: move that away, or name another path"
_NOT_ALLOWED = "let the user who serves write there, or name another path"
_FULL = "make room: what waits is written then"
_REMEDIES = {
    errno.EISDIR: "it is a folder: name a file in it, or move it away",
    errno.ENOTDIR: _FOLDER_IS_A_FILE,
    errno.EEXIST: _FOLDER_IS_A_FILE,  # as a folder that is to be made is met
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _NOT_ALLOWED,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
}


def unwritable(path: Path, error: OSError) -> str:
    """The file, why it cannot be written and what helps, in one line."""
    return f"{_reason(path, error)}; {_remedy(error)}"


def _reason(path: Path, error: OSError) -> str:
    number = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno
    return f"{path}: {os.strerror(number) if number else error}"


def _remedy(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, "what waits is written once that is mended")


def check_access_log(config: AccessLogConfig | None) -> None:
    """Raises InvalidInput SS644 where it is seen that the log of the site cannot be written."""
    if config is not None and (error := obstacle(config.path)) is not None:
        what = f"the access log cannot be written: {_reason(config.path, error)}"
        fix = f"{_remedy(error)} (servestate.router.access_log.path)"
        raise InvalidInput([Diagnostic("SS644", what, fix)])


def obstacle(path: Path) -> OSError | None:
    """What opening `path` to write would meet, as far as looking tells: nothing is made, nor opened."""
    there = next(one for one in (path, *path.parents) if os.path.exists(one))
    if there == path:
        if there.is_dir():
            return _error(errno.EISDIR)
        return None if os.access(there, os.R_OK | os.W_OK) else _error(errno.EACCES)
    if not there.is_dir():
        return _error(errno.ENOTDIR)
    return None if os.access(there, os.W_OK | os.X_OK) else _error(errno.EACCES)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
