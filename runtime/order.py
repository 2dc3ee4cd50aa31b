"""What a process beside the router is told by the one that starts it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from servestate.planner.spec.site import Site
from servestate.runtime.configuration import Options

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Order:
    """The site as the parent has read it, so that a configuration that is being edited ends nothing, and its
    pid. `configuration` is where the site was read from, None where there was nothing. Holds references, no
    secrets."""

    site: Site
    parent: int
    configuration: Options | None = None

    def encode(self) -> bytes:
        """As the child reads it."""
        found = self.configuration
        where = None
        if found is not None:
            where = [str(found.path.absolute()), found.target, dict(found.variables)]
        site = self.site.model_dump(mode="json")
        return json.dumps({"site": site, "parent": self.parent, "configuration": where}).encode()


def decode_order(text: bytes) -> Order:
    """The order that was encoded. Raises ValueError."""
    found = json.loads(text)
    where = found["configuration"]
    options = None if where is None else Options(Path(where[0]), where[1], where[2])
    return Order(Site.model_validate_json(json.dumps(found["site"])), int(found["parent"]), options)


def dies_with(parent: int, number: int = signal.SIGTERM) -> bool:
    """Have the kernel end this process with that signal when its parent dies; False where it is dead
    already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    return os.getppid() == parent
