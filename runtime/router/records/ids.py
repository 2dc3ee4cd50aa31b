"""Request ids, which are always ours: none that a caller sends is passed on."""

from __future__ import annotations

import os
from typing import Final


class _RequestIds:
    """Ids that no caller chose: unique over processes by a random part, within one by a count."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex().encode("ascii")
        self._count = 0

    def new(self) -> bytes:
        """One that was never given before."""
        self._count += 1
        return b"%b-%d" % (self._prefix, self._count)


REQUEST_IDS: Final = _RequestIds()
