"""Named places at which a test kills this process, to prove that an apply survives dying there.

`SERVESTATE_FAILPOINT=launch.after_effect` kills at the first time that point is reached,
`launch.after_effect#3` at the third. Nothing happens while the variable is unset.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "SERVESTATE_FAILPOINT"
_reached: Counter[str] = Counter()


def reach(point: str) -> None:
    """Die here by SIGKILL if this is the point, and the time, that the variable names."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    name, _, nth = wanted.partition("#")
    if name == point:
        _reached[point] += 1
        if _reached[point] == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)
