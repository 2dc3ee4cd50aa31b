"""Ownership marks to and from environment variables. Pure.

Every process of an instance wears them, so what state forgot is still found, and whatever wears no marks of
our lineage is a stranger that nothing here may touch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from servestate.planner.address import parse_instance
from servestate.providers.protocol import Marks

LINEAGE = "SERVESTATE_LINEAGE"
ADDRESS = "SERVESTATE_ADDRESS"
GENERATION = "SERVESTATE_GENERATION"
OP = "SERVESTATE_OP"
NONCE = "SERVESTATE_NONCE"
PORT = "SERVESTATE_PORT"
ROLE = "SERVESTATE_ROLE"
SHIM_ROLE = "shim"


@dataclass(frozen=True, slots=True)
class Worn:
    """The marks of one launch. `nonce` is new at every launch, so the tree of one launch is never taken
    for the tree of another launch of the same address."""

    marks: Marks
    nonce: str
    port: int


def to_env(worn: Worn) -> dict[str, str]:
    """The variables that a process of this launch wears."""
    marks = worn.marks
    return {
        LINEAGE: marks.lineage,
        ADDRESS: str(marks.address),
        GENERATION: str(marks.generation),
        OP: marks.op,
        NONCE: worn.nonce,
        PORT: str(worn.port),
    }


def from_env(env: Mapping[str, str]) -> Worn | None:
    """The marks in `env`; None where one is missing or cannot be ours."""
    try:
        marks = Marks(env[LINEAGE], parse_instance(env[ADDRESS]), int(env[GENERATION]), env[OP])
        return Worn(marks, env[NONCE], int(env[PORT]))
    except (KeyError, ValueError):
        return None
