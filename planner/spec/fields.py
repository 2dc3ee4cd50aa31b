"""Types of single fields, shared by the endpoint and site blocks.

Each accepts what the serving API tolerates and nothing more: YAML writes `"90"` for 90 and 2 for "2", and a
variable set from the command line is always text. The message of a raised error completes "… must be".
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

WANTED = "wanted"
"""Type of the errors raised here; their message is what was expected."""

_WHOLE = re.compile(r"[-+]?[0-9]{1,18}\Z")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(s|m|h|d)?\Z")
_UNIT_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_LONGEST_S = 7 * 24 * 3600.0


def _whole(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, str) and _WHOLE.match(value):
        return int(value)
    raise PydanticCustomError(WANTED, "a whole number")


def _flag(value: Any) -> bool:
    if value is True or value is False:
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise PydanticCustomError(WANTED, "true or false")


def _version(value: Any) -> str:
    if type(value) is int:
        return str(value)
    if isinstance(value, str):
        return value
    raise PydanticCustomError(WANTED, "text or a whole number (put a number with a point in quotes)")


def _seconds(value: Any) -> float:
    if type(value) in (int, float):
        return float(value)
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None:
        raise PydanticCustomError(WANTED, 'a duration: seconds, or text such as "90s", "5m", "12h" or "2d"')
    return float(match[1]) * _UNIT_SECONDS[match[2]]


_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)?\Z")
_UNIT_BYTES = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_UNIT_BYTES |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_LARGEST = 2**60


def _bytes(value: Any) -> int:
    found = None
    if type(value) is int:
        found = value
    elif isinstance(value, str) and (match := _SIZE.match(value)):
        found = int(float(match[1]) * _UNIT_BYTES[match[2]])
    if found is None or not 0 <= found <= _LARGEST:
        raise PydanticCustomError(WANTED, 'a size: bytes, or text such as "512MiB" or "80GiB"')
    return found


def bound_like(written: Any, bound: float) -> str:
    """`bound`, in seconds or bytes, in the unit that `written` has; without one where that has none."""
    for form, units, smallest in ((_DURATION, _UNIT_SECONDS, "s"), (_SIZE, _UNIT_BYTES, "B")):
        match = form.match(written) if isinstance(written, str) else None
        if match is not None and match[2]:
            count = bound / units[match[2]]
            if count == round(count, 1):
                return f"{_plain(count)}{match[2]}"
            return f"{_plain(bound)}{smallest}"
    return _plain(bound)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _fraction(value: Any) -> float:
    try:
        found = float(value) if type(value) in (int, float, str) else None
    except ValueError:
        found = None
    if found is None or not 0 < found <= 1:
        raise PydanticCustomError(WANTED, "a share: more than 0, at most 1")
    return found


Bytes = Annotated[int, BeforeValidator(_bytes)]
"""A size in bytes; "512MiB", "80GiB" and "80GB" pass."""

Fraction = Annotated[float, BeforeValidator(_fraction)]
"""A share of something, in (0, 1]."""

Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer; digit strings pass, fractions and booleans do not (R9, N5)."""

Flag = Annotated[bool, BeforeValidator(_flag)]
"""A boolean; the strings `true` and `false` pass, because variables set outside YAML are text."""

Version = Annotated[str, BeforeValidator(_version)]
"""Text that samples also write as an integer; 2 becomes "2" (N5)."""

Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=_LONGEST_S)]
"""A duration in seconds, at most 7 days where a field has no bound of its own; "90s", "5m", "1h" and "2d"
pass."""


class Schema(BaseModel):
    """Base of all blocks: never changed once loaded, and closed, because an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True)
