"""Where the sources of mounts really are. A plan judges them by their text; a link on this machine may lead
anywhere, and Docker follows it as root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from servestate.planner.launch import Mount
from servestate.planner.spec.host_paths import is_below, source_problem
from servestate.providers.protocol import PermanentError


def resolved(mount: Mount, base_dir: Path, allowed_paths: Sequence[str]) -> Mount:
    """The mount of what its source is in the end, every link followed: that cannot be turned elsewhere any
    more by who may change the link. Raises PermanentError SS532 unless that lies in the bundle's folder or in
    one of the host's allowed paths, and may be given to a container."""
    written = str(base_dir / mount.source)
    real, bundle = _followed(written), _followed(str(base_dir))
    if problem := _problem(real, bundle, [_followed(path) for path in allowed_paths]):
        leads = f" leads to {real}, which" if real != written else ""
        raise PermanentError(
            "SS532",
            f"{written}{leads} {problem}",
            "mount what it should be by its own path, and add its folder to allowed_paths of the host",
        )
    return replace(mount, source=real)


def _problem(real: str, bundle: str, allowed: Sequence[str]) -> str:
    if is_below(real, bundle):
        return source_problem(os.path.relpath(real, bundle))
    if problem := source_problem(real):
        return problem
    if not any(is_below(real, folder) for folder in allowed):
        return "is neither in the bundle's folder nor in the allowed_paths of the host"
    return ""


def _followed(path: str) -> str:
    """The path without links, also of what is not there: Docker says so in its own words."""
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return os.path.realpath(path)
    except OSError as error:
        what = f"{path} cannot be followed to what it is: {error.strerror}"
        raise PermanentError("SS532", what, "correct the mounts and links on the way to it") from error
