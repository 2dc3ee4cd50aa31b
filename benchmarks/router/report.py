"""The tables of a run, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.router.fidelity import Fidelity
from benchmarks.router.figures import FAR, NAN, NEAR, Figures
from benchmarks.router.lineup import Target
from benchmarks.router.measure import CHUNKS_PER_S, OPEN_STREAMS, RUNGS
from benchmarks.router.peers import LLM_ROUTERS, OURS, YARDSTICK
from benchmarks.router.workers import Workers

_COLUMNS = (
    "target",
    "requests/s per core",
    "x nginx",
    "CPU µs, 1 KB",
    "CPU µs, 32 KB",
    "added p50, µs",
    "p99 at half load, µs",
    "CPU µs/chunk",
    "x nginx",
    "paced streams",
    "RSS, MiB",
    f"with {OPEN_STREAMS:,} streams",
    "start, s",
)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that is promised: what it is, what was asked for, what was found; `met` is None where nothing
    was measured."""

    what: str
    asked: str
    found: str
    met: bool | None

    def row(self) -> str:
        """Of the table."""
        verdict = {None: "not measured", True: "met", False: "**missed**"}[self.met]
        return f"| {self.what} | {self.asked} | {self.found} | {verdict} |"


def costs(figures: Figures, targets: Sequence[Target]) -> str:
    """A row for each target."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + " --- |" * len(_COLUMNS)]
    for target in targets:
        name = target.name
        of, beside = partial(figures.median, name), partial(figures.ratio, name, YARDSTICK)
        cells = (
            _side_by_side([1e6 / of("small cpu", at) for at in (NEAR, FAR)], 0),
            _side_by_side([1 / beside("small cpu", at) for at in (NEAR, FAR)], 2),
            *(_each(partial(of, figure), 1) for figure in ("small cpu", "large cpu", "added p50")),
            _number(of("p99")),
            _each(partial(of, "chunk cpu"), 1),
            _each(partial(beside, "chunk cpu"), 2),
            _streams(figures, name),
            _number(of("rss at start")),
            _number(of("rss")),
            _number(target.start_s, 1),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def relaying(found: Mapping[str, Fidelity], targets: Sequence[Target]) -> str:
    """What each target does to the bodies."""
    lines = ["| target | request | answer | stream |", "| --- | --- | --- | --- |"]
    for target in targets:
        if target.name in found:
            one = found[target.name]
            lines.append(f"| {target.name} | {one.request} | {one.answer} | {one.stream} |")
    return "\n".join(lines) + "\n"


def bars(
    figures: Figures, fidelities: Mapping[str, Fidelity], workers: Workers | None, ours: str = OURS
) -> str:
    """What is promised, and whether this run shows it of `ours`."""
    lines = ["| figure | asked for | found | |", "| --- | --- | --- | --- |"]
    found = [*_throughput(figures, ours), *_delays(figures, ours), *_streaming(figures, fidelities, ours)]
    found.append(_at_most(f"RSS with {OPEN_STREAMS:,} open streams, MiB", (figures.median(ours, "rss"),), 80))
    if workers is not None:
        found.append(_at_least("two workers: CPU time allows x requests/s", (workers.speed_up,), 1.8))
    return "\n".join((*lines, *(bar.row() for bar in found))) + "\n"


def _throughput(figures: Figures, ours: str) -> list[Bar]:
    """Ratios of requests per second of a saturated core are those of CPU time, inverted."""
    asked = ((YARDSTICK, 0.5), ("vllm-router", 1.5), ("Envoy", 1.5), ("LiteLLM", 200))
    what = "requests/s per core / "
    each = [_at_least(f"{what}{name}'s", _faster(figures, ours, name), bound) for name, bound in asked]
    others = zip(*(_faster(figures, ours, name) for name in LLM_ROUTERS), strict=True)
    least = [min((one for one in ratios if not math.isnan(one)), default=NAN) for ratios in others]
    return [*each, _at_least(f"{what}the fastest LLM router's", least, 1)]


def _faster(figures: Figures, ours: str, than: str) -> list[float]:
    return [1 / figures.ratio(ours, than, "small cpu", at) for at in (NEAR, FAR)]


def _delays(figures: Figures, ours: str) -> list[Bar]:
    added = [figures.ratio(ours, YARDSTICK, "added p50", at) for at in (NEAR, FAR)]
    direct = figures.median(ours, "p99 direct")
    what = f"p99 at half load, µs (without a router {_number(direct)})"
    return [
        _at_most("added p50 at one connection / nginx's", added, 1.4),
        _at_most(what, (figures.median(ours, "p99"),), 2000),
    ]


def _streaming(figures: Figures, fidelities: Mapping[str, Fidelity], name: str) -> list[Bar]:
    ours, theirs = figures.median(name, "streams"), figures.median(YARDSTICK, "streams")
    relayed = fidelities.get(name)
    same = None if relayed is None else relayed == Fidelity("same but `model`", "same", "same")
    chunk = [figures.ratio(name, YARDSTICK, "chunk cpu", at) for at in (NEAR, FAR)]
    return [
        _at_most("CPU per relayed chunk / nginx's", chunk, 1.15),
        Bar(
            f"paced streams ({CHUNKS_PER_S} chunks/s, added p90 < 10 ms, none lost), ours and nginx's",
            "as many",
            f"{_streams(figures, name)} and {_streams(figures, YARDSTICK)}",
            None if math.isnan(ours) or math.isnan(theirs) else ours >= theirs,
        ),
        Bar("bodies relayed byte for byte but for `model`", "yes", "yes" if same else "see below", same),
    ]


def _at_least(what: str, found: Sequence[float], bound: float) -> Bar:
    return Bar(what, f">= {bound:g}", _side_by_side(found, 2), _all(found, lambda value: value >= bound))


def _at_most(what: str, found: Sequence[float], bound: float) -> Bar:
    return Bar(what, f"<= {bound:g}", _side_by_side(found, 2), _all(found, lambda value: value <= bound))


def _all(found: Sequence[float], holds: Callable[[float], bool]) -> bool | None:
    """Of what was measured: a bar is met if it is at each distance of the cores."""
    known = [value for value in found if not math.isnan(value)]
    return all(map(holds, known)) if known else None


def _each(found: Callable[[str], float], digits: int = 0) -> str:
    return _side_by_side([found(at) for at in (NEAR, FAR)], digits)


def _side_by_side(values: Sequence[float], digits: int) -> str:
    """Empty where nothing was measured."""
    texts = [_number(value, digits) for value in values]
    return " / ".join(text or "-" for text in texts) if any(texts) else ""


def _streams(figures: Figures, name: str) -> str:
    count = figures.median(name, "streams")
    top = not math.isnan(figures.median(name, "top of the ladder"))
    return f">= {RUNGS[-1]:,}" if top else _number(count)


def _number(value: float, digits: int = 0) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"
