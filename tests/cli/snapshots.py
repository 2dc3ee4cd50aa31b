"""Output as files to compare with: `snapshots/VERB/CASE.txt` holds stdout, stderr and the exit code.

What differs from run to run is filtered out. `UPDATE_SNAPSHOTS=1` writes them anew, for review as a diff.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.cli.harness import Result

FOLDER = Path(__file__).parent / "snapshots"

_FILTERS = (
    (re.compile(r"\b\d+\.\d+\.[0-9a-f]{8}\b"), "HANDLE"),
    (re.compile(r"@[0-9a-f]{8}#"), "@REVISION#"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "LINEAGE"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"), "TIME"),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"), "TIME"),
    (re.compile(r"127\.0\.0\.1:\d{5}\b"), "127.0.0.1:PORT"),
    (re.compile(r"\bafter \d+s\b"), "after Ns"),
    (re.compile(r'("elapsed_seconds": )[\d.]+'), r"\1N"),
    (re.compile(r'("at": )[\d.]+'), r"\1N"),
    (re.compile(r'("by": )"[^"]+"'), r'\1"PERSON"'),
    # The write that made an endpoint: steps run at the same time, and another one may write before it.
    (re.compile(r'("serial": )\d+(?=,\n\s+"created")'), r"\1N"),
    (re.compile(r"\block [0-9a-f]{12}\b|(?<=lock break )[0-9a-f]{12}\b"), "lock LOCK"),
    (re.compile(r"\bpid \d+"), "pid PID"),
    (re.compile(r"\bby \S+@\S+ \("), "by PERSON@HOST ("),
    (re.compile(r"\bby \S+ \((apply|destroy)\)"), r"by PERSON (\1)"),
)


def filtered(text: str, folder: Path) -> str:
    """`text` without what differs from run to run. `folder` is where the command ran."""
    text = text.replace(str(folder), "FOLDER")
    for pattern, name in _FILTERS:
        text = pattern.sub(name, text)
    return text


def in_order(text: str) -> str:
    """Progress of steps that run at the same time, in one order."""
    lines = text.splitlines(keepends=True)
    progress = [line for line in lines if _PROGRESS.match(line)]
    first = next((i for i, line in enumerate(lines) if _PROGRESS.match(line)), len(lines))
    rest = [line for line in lines[first:] if not _PROGRESS.match(line)]
    return "".join([*lines[:first], *sorted(progress), *rest])


_PROGRESS = re.compile(r"(?:[\w/-]+|routing table): .*(?:\.\.\.| after \d+s| skipped: )")


def check(result: Result, folder: Path, name: str) -> None:
    """Compare with the snapshot of that name, `VERB/CASE`."""
    path = FOLDER / f"{name}.txt"
    found = _written(result, folder)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found)
    assert path.exists(), f"no snapshot {name}: run with UPDATE_SNAPSHOTS=1 and read what it wrote"
    assert found == path.read_text()


def _written(result: Result, folder: Path) -> str:
    command = filtered(" ".join(result.argv), folder)
    out, err = (filtered(in_order(text), folder) for text in (result.out, result.err))
    return f"$ servestate {command}\n{out}[stderr]\n{err}[exit {result.code}]\n"
