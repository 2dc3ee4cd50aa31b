"""No request is lost, doubled, swapped or cut short unnoticed: half an hour of load with faults.

    .venv/bin/python -m benchmarks.ledger [--minutes 30] [--seed 1] [--write]

`servestate serve` with two workers and four upstreams, and 64 clients at half of the pace that was measured
first, while upstreams, workers, the controller and the router itself are killed, stopped and replaced. What
clients, upstreams, access log and metrics say is compared by each request's number; see `tests/load`. Ends
with 1 where anything is found.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.load.faults import KINDS, harmful, plan
from tests.load.judgement import Evidence, dropped_lines, findings, logged, metered, unnamed, unscraped
from tests.load.outcome import Outcome
from tests.load.run import Run, run

RESULTS = Path(__file__).parent / "results" / "ledger.md"
ROUND_S = 160.0
"""How long each kind of fault once takes, so that there is a calm between two of them."""

_MEANING = {
    Outcome.WHOLE: "whole: the right number and checksum, of a stream its `[DONE]` too",
    Outcome.ERROR: "an error status, complete",
    Outcome.BROKEN: "an error event, or framing that ends short",
    Outcome.CUT_OFF: "the connection ended before a byte of the answer",
    Outcome.REFUSED: "no connection",
    Outcome.ABORTED: "the client left, on purpose",
    Outcome.FOREIGN: "**never**: complete, and of another request",
    Outcome.TRUNCATED: "**never**: complete by its framing, and not as it was sent",
    Outcome.HUNG: "**never**: nothing in time",
}


def report(found: Run, command: str) -> str:
    """Markdown."""
    evidence = found.evidence
    return "\n".join(
        (
            "# Load with faults",
            "",
            f"Made by `{command}`: {evidence.asked:,} requests in {found.seconds:.0f} s, "
            f"{found.pace:.0f} a second, which is half of the {found.capacity:.0f} that were measured first; "
            f"{len(evidence.happened)} faults.",
            "",
            *_verdict(evidence),
            "",
            *_outcomes(evidence),
            "",
            *_sums(evidence),
            "",
            *_faults(evidence),
            "",
        )
    )


def _verdict(evidence: Evidence) -> Iterator[str]:
    said = findings(evidence)
    yield f"Went well: {evidence.success:.4%} of what no client left. Found: {len(said) or 'nothing'}."
    yield from (f"- {finding}" for finding in said)


def _outcomes(evidence: Evidence) -> Iterator[str]:
    counts = evidence.book.counts()
    yield from ("| outcome | requests |", "| --- | ---: |")
    yield from (f"| {meaning} | {counts[outcome]:,} |" for outcome, meaning in _MEANING.items())


def _sums(evidence: Evidence) -> Iterator[str]:
    """The equation, with what each side may lack."""
    book, executed = evidence.book, evidence.executed
    answered = evidence.asked - len(unnamed(evidence)) - book.counts()[Outcome.REFUSED]
    ran = {
        name: sum(1 for n in book.of(*outcomes) if n in executed)
        for name, outcomes in (
            ("whole", [Outcome.WHOLE]),
            ("failed", [Outcome.ERROR, Outcome.BROKEN, Outcome.CUT_OFF]),
            ("left", [Outcome.ABORTED]),
        )
    }
    yield from ("| sum | requests |", "| --- | ---: |")
    yield f"| answers of which clients know the router's name of the request | {answered:,} |"
    yield f"| - lines that died with a worker, its last 0.25 s | {len(book.unlogged):,} |"
    yield f"| + lines of requests whose client left, or was cut off | {len(book.unclaimed):,} |"
    yield f"| = lines of the access log | {book.lines:,} |"
    yield f"| lines that the log says it dropped | {dropped_lines(evidence):,} |"
    yield f"| requests by the metrics | {metered(evidence):,} |"
    yield f"| below the log by | {logged(evidence) - metered(evidence):,} |"
    yield (
        "| of what killed and replaced processes may have counted after they were last asked "
        f"| {len(unscraped(evidence)):,} |"
    )
    yield f"| executions by upstreams | {executed.total():,} |"
    yield f"| = of whole answers | {ran['whole']:,} |"
    yield f"| + of requests that failed | {ran['failed']:,} |"
    yield f"| + of requests whose client left | {ran['left']:,} |"
    yield f"| executed more than once | {sum(1 for times in executed.values() if times > 1):,} |"


def _faults(evidence: Evidence) -> Iterator[str]:
    """Failures are those of requests that ran at the time of a fault of the kind, or up to 5 s after."""
    counts = Counter(fault.kind for fault in evidence.happened)
    yield from (
        "| fault | times | took, s | failures nearby | may it cost requests |",
        "| --- | ---: | ---: | ---: | --- |",
    )
    failures = evidence.failures
    costly = {fault.kind for fault in harmful(evidence.happened)}
    for kind in KINDS:
        these = [fault for fault in evidence.happened if fault.kind == kind]
        took = statistics.median(fault.end - fault.start for fault in these) if these else 0.0
        near = sum(1 for number in failures if evidence.after(number, these))
        yield f"| {kind} | {counts[kind]} | {took:.1f} | {near} | {'yes' if kind in costly else 'no'} |"


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name} as well")
    given = parser.parse_args()
    seconds = given.minutes * 60
    rounds = max(1, int(seconds / ROUND_S))
    with tempfile.TemporaryDirectory(prefix="ss-ledger-") as folder:
        found = run(Path(folder, "site"), seconds, plan(seconds, rounds, given.seed), given.seed)
    text = report(found, f"python -m benchmarks.ledger --minutes {given.minutes:g} --seed {given.seed}")
    print(text)
    if given.write:
        RESULTS.write_text(text)
    return 1 if findings(found.evidence) else 0


if __name__ == "__main__":
    sys.exit(main())
