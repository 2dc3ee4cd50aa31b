"""Our router beside its peers: all of them started on one core, one worker each, measured in turn.

    benchmarks/router/peers.sh             installs the peers, once
    python -m benchmarks.router --write    the whole run, half an hour or more; its tables go to results/
    python -m benchmarks.router --quick    does everything work? Its figures mean nothing

A peer that is not installed, or does not answer, is left out and named. The machine needs two cores and
quiet.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.router.fidelity import Fidelity, fidelity
from benchmarks.router.figures import Figures
from benchmarks.router.lineup import Bench, Target, bench
from benchmarks.router.load import CONNECTIONS
from benchmarks.router.measure import (
    CHUNKS_PER_S,
    STREAMS,
    Effort,
    Measurements,
)
from benchmarks.router.peers import COMPILED, OURS, PEERS
from benchmarks.router.report import bars, costs, relaying
from benchmarks.router.workers import Workers, workers

RESULTS = Path(__file__).parents[1] / "results" / "router.md"
ROUNDS = ("small", "large", "latency", "half", "chunk")
ONCE = ("ladder", "memory", "bytes", "workers")
_NEEDS = {"ladder": {"small", "chunk"}, "half": {"small"}, "chunk": {"small"}, "memory": {"small"}}


def main() -> None:
    chosen = _options()
    for tool in ("gcc", "taskset", "nginx"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is needed: benchmarks/router/peers.sh")
    effort = Effort(chosen.rounds, chosen.seconds, careful=not chosen.quick)
    if chosen.quick:
        effort = Effort(1, 0.3, careful=False)
    kinds = set(chosen.only or (*ROUNDS, *ONCE))
    for kind in tuple(kinds):
        kinds |= _NEEDS.get(kind, set())
    report = run(effort, kinds, chosen.targets or [peer.name for peer in PEERS])
    print(report)
    if chosen.write:
        RESULTS.write_text(report)


def run(effort: Effort, kinds: set[str], names: Sequence[str]) -> str:
    """Measure, and tell."""
    with bench([peer for peer in PEERS if peer.name in names]) as on:
        measurements = Measurements(on, effort, say)
        # Before anything is loaded: a target that has broken under load must not pass for one that alters.
        bodies = {target.name: fidelity(on, target) for target in on.targets} if "bytes" in kinds else {}
        measurements.rounds([kind for kind in ROUNDS if kind in kinds])
        if "ladder" in kinds:
            measurements.ladder()
        if "memory" in kinds:
            measurements.memory()
        scaled = workers(effort, say) if "workers" in kinds else "not measured"
        return report_of(on, measurements, bodies, scaled)


def report_of(
    on: Bench, measurements: Measurements, bodies: dict[str, Fidelity], scaled: Workers | str
) -> str:
    """The whole report."""
    figures, effort = measurements.figures, measurements.effort
    command = f"python -m benchmarks.router --rounds {effort.rounds} --seconds {effort.seconds:g} --write"
    parts = [
        "# Router benchmark\n",
        f"Made by `{command}`. Medians of the rounds,",
        f"ratios paired within a round. {figures.repeated} measurements were repeated since other processes",
        f"took more than 6 % of a core or the cores were moved; {figures.disturbed} had to be kept all the",
        f"same. Load average at the end {os.getloadavg()[0]:.1f}.\n",
        "Each target alone on core 0 with one worker; the engines' stand-in and the client, both in C, on",
        f"core 1. {CONNECTIONS} connections; {STREAMS} streams of {CHUNKS_PER_S} chunks/s. Requests/s per",
        "core are 1 s / CPU time of a request. Only ratios carry over to another machine.",
        "`a / b`: a while the two cores shared a cache, b while they did not (`-`: did not occur); what was",
        "asked for has to hold for both.\n",
        "## What was asked for\n",
        *_asked_for(figures, bodies, scaled if isinstance(scaled, Workers) else None, on.targets),
        f"Workers: {scaled.text() if isinstance(scaled, Workers) else scaled}\n",
        "## Targets\n",
        costs(figures, on.targets),
        *(f"- {target.name}: {target.peer.about}" for target in on.targets),
        *(f"- {name}: left out: {why}" for name, why in on.absent.items()),
        *(f"- {name} failed at times: {why}" for name, why in measurements.why.items()),
        "",
        "## What becomes of the bodies\n",
        relaying(bodies, on.targets),
    ]
    return "\n".join(parts)


def _asked_for(
    figures: Figures, bodies: dict[str, Fidelity], scaled: Workers | None, targets: Sequence[Target]
) -> Iterator[str]:
    for name in (COMPILED, OURS):
        if name in (target.name for target in targets):
            yield f"### {name}\n"
            yield bars(figures, bodies, scaled, name)


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    options.add_argument("--only", nargs="+", choices=(*ROUNDS, *ONCE), help="and what these rest on")
    options.add_argument("--targets", nargs="+", choices=[peer.name for peer in PEERS])
    options.add_argument("--quick", action="store_true", help="one round of 0.3 s each, disturbed or not")
    options.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    return options.parse_args()


if __name__ == "__main__":
    main()
