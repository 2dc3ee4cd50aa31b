"""Limits are exact in real time: 64 clients for a minute, while the router is killed, replaced and its clock
stepped.

    .venv/bin/python -m benchmarks.limits [--seconds 60] [--workers 1 4] [--control] [--write]

`servestate serve` with limits for an endpoint, for each user and for some by name, and clients that want
several times what they may; one of them wants eighty times as much. A minute of lead-in, in which the limits
are just used up and all of them evenly, so that from then on room comes all the time and is wanted at once.
A call was admitted some time between its sending and its answer, which is all that is known from outside: a
finding is what no such times can explain. The wall clock is that of libfaketime (Debian: `faketime`), and
left alone where there is none. With `--control` follow the same runs with limits that do not hold, which has
to be found. Ends with 1 where anything is found, or not found of a control.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.load.limits.callers import setup
from tests.load.limits.evidence import SPAN_S, Evidence
from tests.load.limits.judgement import findings, tally, waits
from tests.load.limits.run import run
from tests.load.limits.site import libfaketime

RESULTS = Path(__file__).parent / "results" / "limits.md"
_NAMED = 6
"""Findings of a control that are written down; there are many."""

_NOTES = """\
`allowed` is a limit's rate for as long as its counts held, or all of it at once where they began anew;
`given` are the calls that upstreams executed, and those that may be lost with who was killed. `mallory`
asks 80 times as often as it may, the others up to 10 times. `one more took` is the shortest time, from the
sending of the first to the answer of the last, in which one call more than the limit was admitted: below 60 s
is a finding. So are a limit that gives less than 99 % of what is allowed; a Retry-After before whose last
second a call is admitted, or after which one is refused although none was admitted meanwhile; header lines
that do not fit the calls that were admitted; a call that ran twice, or was refused and ran; and an answer
other than 200 and 429 that no killed process explains. A call of `tess` uses 12 tokens.
"""

_CONTROLS = {
    "apart": "each worker counts for itself",
    "wall": "the limits go by the wall clock",
}


def report(seen: Evidence) -> Iterator[str]:
    """Markdown of one run."""
    said = findings(seen)
    clients = sum(party.clients for party in seen.setup.parties)
    yield f"## {seen.workers} worker{'s' * (seen.workers > 1)}"
    yield ""
    yield (
        f"{len(seen.calls):,} calls of {clients} clients in {seen.ended - seen.began:.0f} s, "
        f"lead-in included. Found: {len(said) or 'nothing'}."
    )
    yield from (f"- {one}" for one in said)
    yield from ("", *_bounds(seen), "", *_told(seen), "", *_faults(seen), "")


def _bounds(seen: Evidence) -> Iterator[str]:
    yield (
        "| limit | in 60 s | calls | allowed | given | share | most in less than 60 s "
        "| one more took, s | most, with counts begun anew |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    anew = any(fault.anew for fault in seen.faults)
    for bound in seen.setup.bounds:
        if bound.tokens and not bound.hard:
            continue  # there for the header lines
        found = tally(seen, bound)
        allowed = f"{found.wanted:,.0f}" if bound.hard else "-"
        share = f"{found.given / found.wanted:.2%}" if bound.hard else "-"
        closest = f"{found.shortest_s:.3f}" if found.shortest_s < 2 * SPAN_S else "-"
        yield (
            f"| {bound.name} | {bound.most:,} | {found.asked:,} | {allowed} "
            f"| {found.given:,} | {share} | {found.most:,} | {closest} | {found.across if anew else '-'} |"
        )


def _told(seen: Evidence) -> Iterator[str]:
    statuses = Counter(call.status for call in seen.calls)
    found = waits(seen)
    yield from ("| answers | calls |", "| --- | ---: |")
    yield f"| 200 | {statuses[200]:,} |"
    yield f"| 429 | {statuses[429]:,} |"
    others = ((status, n) for status, n in sorted(statuses.items()) if status not in (0, 200, 429))
    yield from (f"| {status} | {n:,} |" for status, n in others)
    yield f"| none: the connection broke, or there was none | {statuses[0]:,} |"
    yield f"| executed by upstreams | {seen.executed.total():,} |"
    yield f"| after the Retry-After of one refused, up to {found.longest_s} s | {found.late:,} |"
    yield f"| - of which 200 | {found.late_admitted:,} |"
    yield f"| more than a second before that, on purpose | {found.early:,} |"
    yield f"| - of which 429 | {found.early_refused:,} |"


def _faults(seen: Evidence) -> Iterator[str]:
    yield from ("| what was done | after, s | took, s |", "| --- | ---: | ---: |")
    for fault in seen.faults:
        took = fault.end - fault.start
        yield f"| {fault.kind} | {fault.start - seen.began:.1f} | {took:.1f} |"
    yield ""
    if any(fault.anew for fault in seen.faults):
        yield (
            "Where its counts begin anew, as with one worker they do, a caller can have its limit once more: "
            "where that is twice within a minute, up to three times (the last column)."
        )
        yield ""
    if seen.stepped is None:
        yield "The wall clock was left alone: libfaketime (Debian: `faketime`) is not installed."
    else:
        ahead, behind = seen.stepped
        yield (
            f"By its access log the router answered {ahead:,} calls an hour ahead of the clock, "
            f"and {behind:,} an hour behind it."
        )


def _control(seen: Evidence, control: str) -> Iterator[str]:
    said = findings(seen)
    yield (
        f"## Control: {seen.workers} worker{'s' * (seen.workers > 1)}, and {_CONTROLS[control]}\n\n"
        f"Found: {len(said) or '**nothing, which is wrong**'}."
    )
    yield from (f"- {one}" for one in said[:_NAMED])
    if len(said) > _NAMED:
        yield f"- and {len(said) - _NAMED} more"
    yield ""


def _control_of(workers: int) -> str:
    """What can be taken away from a router with so many; "" where there is nothing."""
    return "apart" if workers > 1 else "wall" if libfaketime() is not None else ""


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--control", action="store_true", help="then with limits that do not hold")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name} as well")
    given = parser.parse_args()
    command = f"python -m benchmarks.limits --seconds {given.seconds:g} --workers " + " ".join(
        map(str, given.workers)
    )
    lines = ["# Limits in real time", "", f"Made by `{command}{' --control' * given.control}`.", "", _NOTES]
    code = 0

    def one(workers: int, control: str = "") -> Evidence:
        with tempfile.TemporaryDirectory(prefix="ss-limits-") as folder:
            return run(Path(folder, "site"), workers, given.seconds, setup(), SPAN_S, control)

    for workers in given.workers:
        seen = one(workers)
        lines += report(seen)
        code |= bool(findings(seen))
        if given.control and (control := _control_of(workers)):
            seen = one(workers, control)
            lines += _control(seen, control)
            code |= not findings(seen)
    text = "\n".join(lines)
    print(text)
    if given.write:
        RESULTS.write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
