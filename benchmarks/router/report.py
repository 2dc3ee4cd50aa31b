"""The tables of a run, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.router.fidelity import Fidelity
from benchmarks.router.figures import NAN, Figures
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
        small, chunk = figures.median(name, "small cpu"), figures.median(name, "chunk cpu")
        cells = (
            _number(1e6 / small),
            _number(1 / _ratio(figures, name, "small cpu"), 2),
            _number(small, 1),
            _number(figures.median(name, "large cpu"), 1),
            _number(figures.median(name, "added p50"), 1),
            _number(figures.median(name, "p99")),
            _number(chunk, 1),
            _number(_ratio(figures, name, "chunk cpu"), 2),
            _streams(figures, name),
            _number(figures.median(name, "rss at start")),
            _number(figures.median(name, "rss")),
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


def bars(figures: Figures, fidelities: Mapping[str, Fidelity], workers: Workers | None) -> str:
    """What is promised, and whether this run shows it."""
    lines = ["| figure | asked for | found | |", "| --- | --- | --- | --- |"]
    lines += [
        bar.row() for bar in (*_throughput(figures), *_delays(figures), *_streaming(figures, fidelities))
    ]
    rss = figures.median(OURS, "rss")
    lines.append(_at_most(f"RSS with {OPEN_STREAMS:,} open streams, MiB", rss, 80).row())
    if workers is not None:
        lines.append(_at_least("two workers: CPU time allows x requests/s", workers.speed_up, 1.8).row())
    return "\n".join(lines) + "\n"


def _throughput(figures: Figures) -> list[Bar]:
    """Ratios of requests per second of a saturated core are those of CPU time, inverted."""
    asked = ((YARDSTICK, 0.5), ("vllm-router", 1.5), ("Envoy", 1.5), ("LiteLLM", 200))
    each = [
        _at_least(f"requests/s per core / {name}'s", _faster(figures, name), bound) for name, bound in asked
    ]
    ratios = [ratio for name in LLM_ROUTERS if not math.isnan(ratio := _faster(figures, name))]
    return [*each, _at_least("requests/s per core / the fastest LLM router's", min(ratios, default=NAN), 1)]


def _faster(figures: Figures, than: str) -> float:
    return 1 / figures.ratio(OURS, than, "small cpu")


def _delays(figures: Figures) -> list[Bar]:
    added = figures.ratio(OURS, YARDSTICK, "added p50")
    direct = figures.median(OURS, "p99 direct")
    what = f"p99 at half load, µs (without a router {_number(direct)})"
    return [
        _at_most("added p50 at one connection / nginx's", added, 1.4),
        _at_most(what, figures.median(OURS, "p99"), 2000),
    ]


def _streaming(figures: Figures, fidelities: Mapping[str, Fidelity]) -> list[Bar]:
    ours, theirs = figures.median(OURS, "streams"), figures.median(YARDSTICK, "streams")
    found = f"{_streams(figures, OURS)} and {_streams(figures, YARDSTICK)}"
    relayed = fidelities.get(OURS)
    same = None if relayed is None else relayed == Fidelity("same but `model`", "same", "same")
    return [
        _at_most("CPU per relayed chunk / nginx's", figures.ratio(OURS, YARDSTICK, "chunk cpu"), 1.15),
        Bar(
            f"paced streams ({CHUNKS_PER_S} chunks/s, added p90 < 10 ms, none lost), ours and nginx's",
            "as many",
            found,
            None if math.isnan(ours / (theirs or NAN)) else ours >= theirs,
        ),
        Bar("bodies relayed byte for byte but for `model`", "yes", "yes" if same else "see above", same),
    ]


def _at_least(what: str, found: float, bound: float) -> Bar:
    return Bar(what, f">= {bound:g}", _number(found, 2), None if math.isnan(found) else found >= bound)


def _at_most(what: str, found: float, bound: float) -> Bar:
    return Bar(what, f"<= {bound:g}", _number(found, 2), None if math.isnan(found) else found <= bound)


def _ratio(figures: Figures, name: str, figure: str) -> float:
    return figures.ratio(name, YARDSTICK, figure)


def _streams(figures: Figures, name: str) -> str:
    count = figures.median(name, "streams")
    top = not math.isnan(figures.median(name, "top of the ladder"))
    return f">= {RUNGS[-1]:,}" if top else _number(count)


def _number(value: float, digits: int = 0) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"
