"""What a plain (unquoted) YAML scalar means: the core schema of YAML 1.2, less its traps.

Only null, true/false, decimal integers and decimal fractions are not text. `yes`, `on`, `0123`, `1_000`,
`1:30` and dates stay text, so nothing is guessed; infinities and NaN are refused, because no JSON can hold
them.
"""

from __future__ import annotations

import re
from math import isinf

Scalar = None | bool | int | float | str

_WORDS: dict[str, Scalar] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})\Z")
_FRACTION = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_A_NUMBER = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_NUMBER_START = frozenset("0123456789+-.")


def resolve(text: str) -> Scalar:
    """The value of plain scalar `text`. Raises ValueError for a number that JSON cannot hold."""
    if text in _WORDS:
        return _WORDS[text]
    return _number(text) if text[0] in _NUMBER_START else text


def _number(text: str) -> Scalar:
    if _INTEGER.match(text):
        return int(text)
    if _NOT_A_NUMBER.match(text):
        raise ValueError("not a finite number")
    if not _FRACTION.match(text):
        return text
    return _finite(text)


def _finite(text: str) -> float:
    if isinf(value := float(text)):
        raise ValueError("number too large")
    return value


class Resolved(dict[str, Scalar]):
    """Remembers what each text resolved to: most scalars of a large file repeat."""

    def __missing__(self, text: str) -> Scalar:
        value = self[text] = resolve(text)
        return value
