"""What a run has shown: pure, so that the ledger's own judgement can be tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.load.book import Book
from tests.load.faults import Happened, harmful
from tests.load.outcome import NEVER, Outcome
from tests.load.place import Scrape

AROUND_S = 5.0
"""How far from a fault everything has to be well again."""
BURIED_S = 0.4
"""How old lines are at most that die with a worker: its writer's 0.25 s, and the machine's other work."""
SHARE = 0.995
REPEATABLE = frozenset({400, 401, 403, 404, 429, 503})
"""Statuses that say that nothing was executed."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of a run. `executed` counts the executions of each number."""

    book: Book
    executed: Counter[int]
    scrapes: Sequence[Scrape]
    happened: list[Happened]
    revoked: Sequence[tuple[float, float]]

    @property
    def asked(self) -> int:
        """How many requests were made."""
        return len(self.book.outcomes)

    @property
    def failures(self) -> list[int]:
        """The requests that did not end well, and that nobody had left."""
        fine = (Outcome.WHOLE, Outcome.ABORTED)
        return list(self.book.of(*(one for one in Outcome if one not in fine)))

    @property
    def success(self) -> float:
        """The share of requests that ended well, of those that nobody had left."""
        stayed = self.asked - self.book.counts()[Outcome.ABORTED]
        return 1 - len(self.failures) / stayed if stayed else 0.0

    def after(self, number: int, faults: Iterable[Happened]) -> bool:
        """Whether the request ran at the time of one of these faults, or shortly after."""
        began, ended = self.book.began[number], self.book.ended[number]
        return any(began <= fault.end + AROUND_S and ended >= fault.start for fault in faults)


def findings(evidence: Evidence) -> list[str]:
    """What must not be, in words; empty where the run passes."""
    return [
        *_outcomes(evidence),
        *_executions(evidence),
        *_log(evidence),
        *_metrics(evidence),
        *_calm(evidence),
        *_revoked(evidence),
    ]


def _outcomes(evidence: Evidence) -> Iterator[str]:
    book = evidence.book
    without = [number for number, outcome in enumerate(book.outcomes) if not outcome]
    yield from _some("requests without an outcome", without)
    for outcome in NEVER:
        yield from _some(f"requests that ended as {outcome.name}", list(book.of(outcome)))
    yield from _some("requests put off without a Retry-After", book.unpaced)
    killed = [fault for fault in evidence.happened if fault.kind == "worker killed"]
    dropped = [n for n in book.of(Outcome.CUT_OFF) if not evidence.after(n, killed)]
    yield from _some("requests that were accepted and dropped, and no worker had died", dropped)


def _executions(evidence: Evidence) -> Iterator[str]:
    """Upstream = client: whole answers were executed once, all others at most once, and not at all where the
    client was told that it may repeat the request."""
    book, executed = evidence.book, evidence.executed
    yield from _some("requests executed twice", [n for n, times in executed.items() if times > 1])
    yield from _some("executed requests that nobody made", [n for n in executed if n >= evidence.asked])
    whole = [n for n in book.of(Outcome.WHOLE) if n not in executed]
    yield from _some("whole answers to requests that were never executed", whole)
    safe = [n for n in book.of(Outcome.ERROR) if book.statuses[n] in REPEATABLE and n in executed]
    yield from _some("executed requests whose client was told to repeat them", safe)
    refused = [n for n in book.of(Outcome.REFUSED) if n in executed]
    yield from _some("executed requests without a connection", refused)


def _log(evidence: Evidence) -> Iterator[str]:
    """Access log = client: a line for every answer, and no line too many. Lost may be what a killed worker
    had not written yet, and what the log itself says that it dropped."""
    book = evidence.book
    yield from book.mismatched[:_SHOWN]
    lost = [n for n in book.unlogged.values() if not _buried(evidence, n)]
    dropped = dropped_lines(evidence)
    if len(lost) > dropped:
        yield from _some(f"answers without a line in the access log, which dropped {dropped}", lost)
    nameless = unnamed(evidence)
    if len(book.unclaimed) > len(nameless):
        yield f"{len(book.unclaimed)} lines of the access log for {len(nameless)} requests without a name"
    ran = [n for n in nameless if n in evidence.executed and not _buried(evidence, n)]
    ran = [n for n in ran if book.outcomes[n] == Outcome.ABORTED]
    if len(ran) > len(book.unclaimed) + dropped:
        yield f"{len(ran)} requests of clients that left ran, and the access log has {len(book.unclaimed)}"


def _metrics(evidence: Evidence) -> Iterator[str]:
    """Metrics = access log: what a killed worker, or a replaced router, counted after it was last asked is
    not in the metrics, and what a killed worker had not written is not in the log."""
    written = logged(evidence)
    counted = metered(evidence)
    late = len(unscraped(evidence))
    unwritten = sum(1 for n in unnamed(evidence) if _buried(evidence, n))
    if not written - late <= counted <= written + unwritten:
        yield (
            f"the metrics say {counted} requests, the access log {written}, of which the metrics can lack "
            f"{late} and the log {unwritten}"
        )


def _calm(evidence: Evidence) -> Iterator[str]:
    if not evidence.asked or evidence.success < SHARE:
        yield f"only {evidence.success:.4%} of the requests went well"
    outside = [n for n in evidence.failures if not _near(evidence, n)]
    yield from _some(f"failures more than {AROUND_S:g} s from any fault", outside)
    causes = list(harmful(evidence.happened))
    idle = [n for n in evidence.failures if not evidence.after(n, causes)]
    yield from _some("failures that no harmful fault explains", idle)


def _revoked(evidence: Evidence) -> Iterator[str]:
    book = evidence.book
    admitted = [
        number
        for number in book.spare
        if any(start <= book.began[number] and book.ended[number] <= end for start, end in evidence.revoked)
        and (book.outcomes[number] == Outcome.WHOLE or number in evidence.executed)
    ]
    yield from _some("requests admitted with a token 2 s after it was revoked", admitted)


# The sums.


def logged(evidence: Evidence) -> int:
    """Lines of the access log, with those that it dropped or that died with a worker, as far as clients know
    of them."""
    return evidence.book.lines + len(evidence.book.unlogged)


def metered(evidence: Evidence) -> int:
    """Requests as the metrics count them: each router's last word."""
    return sum(scrape.requests for scrape in last_words(evidence.scrapes))


def dropped_lines(evidence: Evidence) -> int:
    """Lines that the access log says it had no room for."""
    return sum(scrape.dropped for scrape in last_words(evidence.scrapes))


def last_words(scrapes: Sequence[Scrape]) -> Iterator[Scrape]:
    """The last scrape of each router: another one counts from the beginning, and nothing else falls."""
    yield from (a for a, b in pairwise(scrapes) if b.requests < a.requests)
    yield from scrapes[-1:]


def unnamed(evidence: Evidence) -> list[int]:
    """Requests of which the client never heard the name that the router gave them."""
    book = evidence.book
    kinds = (Outcome.ABORTED, Outcome.CUT_OFF, Outcome.HUNG)
    return [n for n in book.of(*kinds) if not book.statuses[n]]


def unscraped(evidence: Evidence) -> list[int]:
    """Requests that a process which was killed or replaced may have counted after it was last asked."""
    book = evidence.book
    gaps = list(_gaps(evidence))
    return [
        number
        for number, ended in enumerate(book.ended)
        if any(start <= ended and book.began[number] <= end for start, end in gaps)
    ]


def _gaps(evidence: Evidence) -> Iterator[tuple[float, float]]:
    replaced = [fault for fault in evidence.happened if fault.kind == "router replaced"]
    for last in list(last_words(evidence.scrapes))[:-1]:
        yield last.at, next((fault.end for fault in replaced if fault.end > last.at), last.at)
    for fault in evidence.happened:
        if fault.kind == "worker killed":
            last_at = max((scrape.at for scrape in evidence.scrapes if scrape.at < fault.end), default=0.0)
            yield last_at - BURIED_S, fault.end + BURIED_S


def _buried(evidence: Evidence, number: int) -> bool:
    """Whether its line may have died with a worker."""
    ended = evidence.book.ended[number]
    kills = (fault.end for fault in evidence.happened if fault.kind == "worker killed")
    return any(kill - BURIED_S <= ended <= kill + BURIED_S for kill in kills)


def _near(evidence: Evidence, number: int) -> bool:
    began, ended = evidence.book.began[number], evidence.book.ended[number]
    return any(began <= f.end + AROUND_S and ended >= f.start - AROUND_S for f in evidence.happened)


def _some(what: str, numbers: Sequence[int]) -> Iterator[str]:
    if numbers:
        yield f"{len(numbers)} {what}: {list(numbers[:_SHOWN])}"
