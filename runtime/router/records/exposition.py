"""Metrics as Prometheus reads them: its text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterator

from servestate.runtime.router.records.families import FAMILIES, Family, Sample, Snapshot

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def expose(snapshot: Snapshot) -> bytes:
    """The text of all families, in their declared order."""
    return "".join(line for name in FAMILIES for line in _family(name, snapshot.get(name, []))).encode()


def _family(name: str, samples: list[Sample]) -> Iterator[str]:
    family = FAMILIES[name]
    yield f"# HELP {name} {family.text}\n# TYPE {name} {family.kind}\n"
    for labels, *numbers in samples:
        pairs = [f'{k}="{v.translate(_ESCAPES)}"' for k, v in zip(family.labels, labels, strict=True)]
        if family.kind == "histogram":
            yield from _histogram(name, family, pairs, numbers)
        else:
            yield f"{name}{_braced(pairs)} {numbers[0]}\n"


def _histogram(name: str, family: Family, pairs: list[str], numbers: Sample) -> Iterator[str]:
    counts, total = numbers
    below = 0
    for bound, count in zip([*map(repr, family.bounds), "+Inf"], counts, strict=True):
        below += count
        le = f'le="{bound}"'
        yield f"{name}_bucket{_braced([*pairs, le])} {below}\n"
    yield f"{name}_sum{_braced(pairs)} {total}\n{name}_count{_braced(pairs)} {below}\n"


def _braced(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""
