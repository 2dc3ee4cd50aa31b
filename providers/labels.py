"""Ownership marks to and from environment variables. Pure.

Every process of an instance wears them, so what state forgot is still found, and whatever wears no marks of
our lineage is a stranger that nothing here may touch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from servestate.planner.address import parse_instance
from servestate.planner.launch import LOCAL, Placement
from servestate.providers.protocol import Marks

LINEAGE = "SERVESTATE_LINEAGE"
ADDRESS = "SERVESTATE_ADDRESS"
GENERATION = "SERVESTATE_GENERATION"
OP = "SERVESTATE_OP"
NONCE = "SERVESTATE_NONCE"
PORT = "SERVESTATE_PORT"
GPUS = "SERVESTATE_GPUS"
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
    held = {GPUS: text} if (text := gpus_to_text(marks.placement)) else {}
    return held | {
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
        placement = gpus_from_text(LOCAL, env.get(GPUS, ""))
        address = parse_instance(env[ADDRESS])
        marks = Marks(env[LINEAGE], address, int(env[GENERATION]), env[OP], placement)
        return Worn(marks, env[NONCE], int(env[PORT]))
    except (KeyError, ValueError):
        return None


def gpus_to_text(placement: Placement) -> str:
    """The GPUs that are held, as `0,1` or `0,1@0.5` for a share of each; "" for none."""
    if not placement.gpus:
        return ""
    share = f"@{placement.fraction}" if placement.fraction != 1 else ""
    return ",".join(placement.gpus) + share


def gpus_from_text(host: str, text: str) -> Placement:
    """The placement on `host` that the text tells. Raises ValueError."""
    ids, _, share = text.partition("@")
    return Placement(host, tuple(ids.split(",")) if ids else (), float(share or 1))
