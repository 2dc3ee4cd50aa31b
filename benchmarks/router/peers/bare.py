"""The least that a router of this design can do: the yardstick for what our router adds to it."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.router.peer import Launch, Place

PROTOTYPE = Path(__file__).parent.parent / "bare.py"


class Bare:
    """`bare.py`: no checks, no streams, no errors."""

    name = "bare prototype"
    about = "rewrites `model`, checks nothing"

    def program(self, installed: Path) -> Path | None:
        return Path(sys.executable)

    def launch(self, place: Place) -> Launch:
        return Launch((sys.executable, str(PROTOTYPE), str(place.port), *map(str, place.engines)))
