"""Sizes as people write them."""

from __future__ import annotations

_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def sized(size: int) -> str:
    """Bytes in the largest unit that gives a number of at most three decimals, else as they are."""
    for unit, of in _UNITS:
        if size >= of and size * 1000 % of == 0:
            return f"{size / of:g} {unit}"
    return f"{size} B"
