"""What the daemon's refusals mean: which will not go away by themselves, and what to do about them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from servestate.providers.protocol import PermanentError


@dataclass(frozen=True, slots=True)
class _Meaning:
    """`pattern` is found in the daemon's words; `fix` says what to do."""

    pattern: str
    code: str
    fix: str


# The first that matches wins, so the more particular ones come first. The words are those of Docker 20 to 28.
_MEANINGS = (
    _Meaning(
        r"could not select device driver|nvidia-container-cli|unresolvable CDI devices",
        "SS512",
        "install the driver and the NVIDIA Container Toolkit on that host, then restart its Docker",
    ),
    _Meaning(r"no such image|image .* not found", "SS530", "pull it there, or let servestate pull: missing"),
    _Meaning(r"no space left on device|disk quota exceeded", "SS534", "free space on that host"),
    _Meaning(
        r"bind source path does not exist|invalid mount|error mounting|not a directory",
        "SS532",
        "correct the mounts: every source has to be there, on the host of the container",
    ),
    _Meaning(
        r"cannot assign requested address|invalid (IP|host ?IP)",
        "SS532",
        "make `address` of that host in servestate.providers.docker one of its own IP addresses",
    ),
    _Meaning(r"network .*not found", "SS532", "create that network on the host, or write network: bridge"),
    _Meaning(
        r"unable to find (user|group)|no matching entries in (passwd|group)",
        "SS532",
        "write the user as numbers, UID:GID",
    ),
)
_PASSING = re.compile(r"port is already allocated|address already in use", re.IGNORECASE)
"""Docker chose the port, and somebody else took it in that moment: it chooses another one next time."""


def explained(status: int, message: str, where: str) -> PermanentError | None:
    """The refusal as an error for a person; None where trying again may help."""
    if _PASSING.search(message):
        return None
    for meaning in _MEANINGS:
        if re.search(meaning.pattern, message, re.IGNORECASE):
            return PermanentError(meaning.code, f"{where} refuses: {message}", meaning.fix)
    if status == 400:  # it does not understand what is asked, and will not do so next time
        return PermanentError("SS532", f"{where} refuses: {message}", "correct the container's settings")
    return None
