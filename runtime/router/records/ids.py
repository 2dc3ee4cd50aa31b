"""Request ids, which are always ours: none that a caller sends is passed on."""

from __future__ import annotations

import os
from itertools import count
from typing import Final


class _RequestIds:
    """Ids that no caller chose: unique over processes by a random part, within one by a count."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex().encode("ascii")
        self._count = count(1)

    def __next__(self) -> bytes:
        return b"%b-%x" % (self._prefix, next(self._count))


REQUEST_IDS: Final = _RequestIds()
