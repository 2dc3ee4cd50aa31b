"""Ownership marks to and from labels of a container, and the container's name. Pure.

Docker keeps the labels of a container as they were when it was created, so what wears no readable marks of
our lineage was not made here and is a stranger.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from servestate.planner.address import InstanceAddress, parse_instance
from servestate.providers.labels import Worn, gpus_from_text, gpus_to_text
from servestate.providers.protocol import Marks

PREFIX = "io.servestate."
LINEAGE = f"{PREFIX}lineage"
ADDRESS = f"{PREFIX}address"
REVISION = f"{PREFIX}revision"
GENERATION = f"{PREFIX}generation"
OP = f"{PREFIX}op"
NONCE = f"{PREFIX}nonce"
PORT = f"{PREFIX}port"
GPUS = f"{PREFIX}gpus"

_LONGEST_PART = 32
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")


def to_labels(worn: Worn) -> dict[str, str]:
    """The labels of the container of this launch. `port` is the one inside."""
    marks = worn.marks
    held = {GPUS: text} if (text := gpus_to_text(marks.placement)) else {}
    return held | {
        LINEAGE: marks.lineage,
        ADDRESS: str(marks.address),
        REVISION: marks.address.revision,
        GENERATION: str(marks.generation),
        OP: marks.op,
        NONCE: worn.nonce,
        PORT: str(worn.port),
    }


def from_labels(host: str, labels: Mapping[str, str]) -> Worn | None:
    """The marks in the labels of a container on `host`; None where one is missing or cannot be ours."""
    try:
        placement = gpus_from_text(host, labels.get(GPUS, ""))
        address = parse_instance(labels[ADDRESS])
        marks = Marks(labels[LINEAGE], address, int(labels[GENERATION]), labels[OP], placement)
        return Worn(marks, labels[NONCE], int(labels[PORT]))
    except (KeyError, ValueError):
        return None


def digest(labels: Mapping[str, str]) -> str:
    """A short hash of all labels of ours, what a later version may add included."""
    ours = sorted((name, value) for name, value in labels.items() if name.startswith(PREFIX))
    return _short_hash(repr(ours), 16)


def container_name(lineage: str, address: InstanceAddress) -> str:
    """The name, the same whenever it is asked for: Docker lets one container have it, so two launches of one
    address cannot both succeed."""
    said = [address.endpoint, address.entity]
    shown = [_NOT_IN_NAMES.sub("_", part)[:_LONGEST_PART] for part in said]
    parts = [_NOT_IN_NAMES.sub("_", lineage)[:8], *shown, address.revision, str(address.replica)]
    # A hyphen in a part makes the join ambiguous: a-b/c and a/b-c.
    if shown != said or any("-" in part for part in shown):
        parts.append(_short_hash(str(address), 6))
    return "-".join(["servestate", *parts])


def _short_hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
