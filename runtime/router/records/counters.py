"""What the router counts of each served entity, for reports and metrics; kept as long as a table names it."""

from __future__ import annotations

from bisect import bisect_left
from math import inf
from typing import TYPE_CHECKING

from servestate.runtime.router.http import errors

if TYPE_CHECKING:
    from servestate.runtime.router.messages.body import Kind
    from servestate.runtime.router.records.record import Record, Usage

BOUNDS_MS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 120000, 300000, 600000)
"""Upper bounds, inclusive, of all but the last bucket; those of the serving API's `request_latency_ms`."""
_BOUNDS_S = tuple(bound / 1000 for bound in BOUNDS_MS)  # floats: compared with integers they cost double

# Those of OpenTelemetry's conventions for generative AI, in seconds and tokens.
DURATION_S = tuple(0.01 * 2**i for i in range(14))
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(float(4**i) for i in range(14))
# Ours.
OWN_S = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1, 1.0)
QUEUE_S = FIRST_TOKEN_S

ERROR_TYPES = frozenset(
    {
        errors.INVALID,
        errors.BAD_REQUEST,
        errors.NO_SUCH_RESOURCE,
        errors.NO_SUCH_PATH,
        errors.LIMITED,
        errors.UNAVAILABLE,
        errors.TOO_SLOW,
        errors.BROKEN,
        errors.UNAUTHENTICATED,
        errors.PERMISSION_DENIED,
    }
)
"""Codes that are told apart; any other is `_OTHER`, as the conventions have it."""


class Histogram:
    """Numbers by size: each in the first bucket whose bound is not below it."""

    __slots__ = ("_at", "_bounds", "_least", "_most", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        # Where the last one fell, most often the next one falls too: to look there costs a fifth of a search.
        self._at = 0
        self._least, self._most = -inf, bounds[0]

    def observe(self, value: float) -> None:
        """Count one."""
        if not self._least < value <= self._most:
            self._turn_to(value)
        counts, at = self.counts, self._at
        counts[at] = counts[at] + 1
        self.sum += value

    def observe_each(self, value: float, times: int) -> None:
        """Count so many of the same."""
        if not self._least < value <= self._most:
            self._turn_to(value)
        self.counts[self._at] += times
        self.sum += value * times

    def _turn_to(self, value: float) -> None:
        bounds = self._bounds
        at = self._at = bisect_left(bounds, value)
        self._least = bounds[at - 1] if at else -inf
        self._most = bounds[at] if at < len(bounds) else inf


class KindCounters:
    """What is told apart by the kind of body too. `durations` are by the type of error, "" for none, in
    seconds from the request to its end; `first`, `per_token` and `per_chunk` are of whole streams only, the
    last the mean of each as often as it had chunks after its first. `prompt` and `completion` count the
    tokens of requests whose usage the model's server stated."""

    __slots__ = ("completion", "durations", "first", "per_chunk", "per_token", "prompt")

    def __init__(self) -> None:
        self.durations = {"": Histogram(DURATION_S)}
        self.first = Histogram(FIRST_TOKEN_S)
        self.per_token = Histogram(PER_TOKEN_S)
        self.per_chunk = Histogram(PER_TOKEN_S)
        self.prompt = Histogram(TOKENS)
        self.completion = Histogram(TOKENS)

    def failed(self, error: str, seconds: float) -> None:
        """Count a request that did not end well."""
        if error not in self.durations:
            self.durations[error] = Histogram(DURATION_S)
        self.durations[error].observe(seconds)

    def streamed(self, record: Record) -> None:
        """Count the pace of a stream that came to its end."""
        self.first.observe(record.first_s)
        more = record.chunks - 1
        if more > 0:
            self.per_chunk.observe_each((record.total_s - record.first_s) / more, more)
        usage = record.usage
        if usage is not None and usage.completion > 1:
            self.per_token.observe((record.total_s - record.first_s) / (usage.completion - 1))


class Counters:
    """What happened to one entity since the router started.

    `requests` and `inflight` are kept by the exchange, which alone sees a request begin; all else by `ended`.
    `statuses` counts whole answers by the hundreds of their status; one that broke off counts as a 5xx
    whatever its status line said, and one that the client did not wait for not at all. `latencies` are their
    times in seconds, from the whole request to the whole answer, by `BOUNDS_MS`. `codes` are the statuses by
    how the entity was chosen, 0 for none, and `well` counts requests that nothing was wrong with. `tokens`
    are those of requests and of answers as the model's server stated them, then the same two as estimated.
    """

    __slots__ = (
        "codes",
        "direct",
        "errors",
        "inflight",
        "kinds",
        "latencies",
        "own",
        "queued",
        "requests",
        "statuses",
        "tokens",
        "well",
    )

    def __init__(self) -> None:
        self.requests = self.errors = self.direct = self.inflight = self.well = 0
        self.statuses = [0] * 6
        self.latencies = Histogram(_BOUNDS_S)
        self.codes: dict[str, dict[int, int]] = {"split": {}, "direct": {}, "fallback": {}, "mirror": {}}
        self.own = Histogram(OWN_S)
        self.queued = Histogram(QUEUE_S)
        self.kinds: dict[Kind, KindCounters] = {}
        self.tokens = [0, 0, 0, 0]

    def answered(self, hundreds: int, seconds: float) -> None:
        """Count an answer by the hundreds of its status, so long after its request."""
        self.statuses[hundreds] += 1
        self.latencies.observe(seconds)

    def ended(self, record: Record) -> None:
        """Count a request that is over."""
        codes = self.codes[record.how]
        status = record.status
        codes[status] = codes.get(status, 0) + 1
        if record.how == "direct":
            self.direct += 1
        self.own.observe(record.own_s)
        if record.queue_s:
            self.queued.observe(record.queue_s)
        else:
            self.queued.counts[0] += 1
        kind = self.kinds.get(record.kind)
        if kind is None:
            kind = self.kinds[record.kind] = KindCounters()
        seconds = record.total_s
        if record.code or record.cut or record.gone:
            self._ended_badly(record, kind, seconds)
        else:
            self.well += 1
            self.answered(status // 100, seconds)
            kind.durations[""].observe(seconds)
            if record.streaming and record.first_s >= 0:
                kind.streamed(record)
        if record.usage is not None:
            self._used(record.usage, kind)

    def _ended_badly(self, record: Record, kind: KindCounters, seconds: float) -> None:
        kind.failed(error_type(record), seconds)
        if record.gone:
            return
        if record.cut or record.status >= 500:
            self.errors += 1
        self.answered(5 if record.cut else record.status // 100, seconds)

    def _used(self, usage: Usage, kind: KindCounters) -> None:
        tokens = self.tokens
        if usage.estimated:  # not into the histograms: the conventions have stated numbers there, or none
            tokens[2] += usage.prompt
            tokens[3] += usage.completion
            return
        tokens[0] += usage.prompt
        tokens[1] += usage.completion
        kind.prompt.observe(float(usage.prompt))
        if usage.completion:
            kind.completion.observe(float(usage.completion))


def error_type(record: Record) -> str:
    """In one word of few what went wrong with a request; "" for nothing."""
    if record.gone:
        return "client_gone"
    if record.cut:
        return "stream_truncated"
    if not record.code or record.code in ERROR_TYPES:
        return record.code
    return "_OTHER"
