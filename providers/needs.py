"""Checks what a command needs before it is tried, so that a wrong path fails at once and by name."""

from __future__ import annotations

from importlib.util import find_spec
from typing import assert_never

from servestate.providers.engines.engine import Need, NeedsFile, NeedsModule
from servestate.providers.protocol import PermanentError


def check(need: Need) -> None:
    """Raises PermanentError SS502 or SS505 when the need is not met."""
    match need:
        case NeedsFile():
            _check_file(need)
        case NeedsModule():
            if find_spec(need.module) is None:
                raise PermanentError("SS505", f"the Python package {need.module} is not installed", need.fix)
        case _:
            assert_never(need)


def _check_file(need: NeedsFile) -> None:
    try:
        with need.path.open("rb") as file:
            found = file.read(len(need.magic))
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise PermanentError("SS502", f"{need.kind} file {need.path}: {reason}", need.fix) from error
    if found != need.magic:
        what = "is empty" if not found else f"begins with {found!r}, not {need.magic!r}"
        raise PermanentError("SS502", f"{need.path} is not a {need.kind} file: it {what}", need.fix)
