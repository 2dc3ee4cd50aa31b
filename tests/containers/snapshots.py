"""Plans of containers as files to compare with: `snapshots/CASE.txt`.

What differs from run to run is filtered out. `UPDATE_SNAPSHOTS=1` writes them anew, for review as a diff.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.cli import snapshots
from tests.cli.harness import Result

FOLDER = Path(__file__).parent / "snapshots"

_FILTERS = (
    (re.compile(r"/[0-9a-f]{64}/(?:created|\d{4}-\d\d-\d\dT[\d:.]+Z)"), "/HANDLE"),
    (re.compile(r"servestate-test/([\w-]+):[0-9a-f]{16}"), r"servestate-test/\1:TAG"),
    (re.compile(r"sha256:[0-9a-f]{12}…"), "sha256:DIGEST…"),
    (re.compile(r"servestate-[0-9a-f]{8}-([\w-]+)-[0-9a-f]{8}-\d+\b"), r"servestate-LINEAGE-\1-REVISION-N"),
    (re.compile(r"(@[0-9a-f]{8})#\d+\b"), r"\1#N"),  # which one is free depends on what was there before
    (re.compile(r"\blabels [0-9a-f]{16}\b"), "labels HASH"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"127\.0\.0\.1:\d{5}\b"), "127.0.0.1:PORT"),
    (re.compile(r"unix://\S+\.sock"), "unix://SOCKET"),
)


def filtered(text: str, folder: Path) -> str:
    """`text` without what differs from run to run. `folder` is where the command ran."""
    for pattern, name in _FILTERS:
        text = pattern.sub(name, text)
    return snapshots.filtered(text, folder)


def check(result: Result, folder: Path, name: str) -> None:
    """Compare stdout, stderr and the exit code with the snapshot of that name."""
    path = FOLDER / f"{name}.txt"
    command = filtered(" ".join(result.argv), folder)
    out, err = (filtered(snapshots.in_order(text), folder) for text in (result.out, result.err))
    found = f"$ servestate {command}\n{out}[stderr]\n{err}[exit {result.code}]\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found)
    assert path.exists(), f"no snapshot {name}: run with UPDATE_SNAPSHOTS=1 and read what it wrote"
    assert found == path.read_text()
