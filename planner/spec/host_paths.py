"""Which paths of a host containers may be given. Judged by their text: nothing is looked at."""

from __future__ import annotations

_SYSTEM = (
    "/boot",
    "/dev",
    "/etc",
    "/proc",
    "/run",
    "/sys",
    "/var/run",
    "/var/lib/docker",
    "/var/lib/containerd",
)
_OWN = ".servestate"
_INSIDE = ("/run/servestate", "/cache", "/models")
_INSIDE_SYSTEM = ("/dev", "/proc", "/sys")


def is_absolute(path: str) -> bool:
    """Whether it starts at the root of the host, not at the bundle's folder."""
    return path.startswith("/")


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or something inside it."""
    inner, outer = _parts(path), _parts(folder)
    return inner[: len(outer)] == outer


def source_problem(path: str) -> str:
    """Why no container may be given this path of the host, "" where it may."""
    if problem := _form_problem(path):
        return problem
    if path.endswith(".sock"):
        return "is a socket, and whoever has it has the rights of the program behind it"
    if not is_absolute(path):
        own = not _parts(path) or _parts(path)[0] == _OWN
        return f"holds {_OWN}, the state and the keys of servestate" if own else ""
    if not _parts(path):
        return "is the whole host"
    if any(is_below(path, system) or is_below(system, path) for system in _SYSTEM):
        return "is part of the host's system"
    return ""


def target_problem(path: str) -> str:
    """Why nothing can be mounted at this path of a container, "" where it can."""
    if problem := _form_problem(path):
        return problem
    if not is_absolute(path):
        return "is not absolute"
    if any(is_below(reserved, path) or is_below(path, reserved) for reserved in _INSIDE):
        return "is where servestate puts its own: " + ", ".join(_INSIDE)
    if any(is_below(path, system) for system in _INSIDE_SYSTEM):
        return "is part of the container's system"
    return ""


def _form_problem(path: str) -> str:
    if not path:
        return "is empty"
    if ".." in path.split("/"):
        return 'holds ".."'
    if path.startswith("~"):
        return 'starts with "~", which nothing expands'
    if ":" in path or not path.isprintable():
        return "holds characters that no mount can"
    return ""


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))
