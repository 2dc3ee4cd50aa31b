"""What the clients know: every request by its number, when it ran and how it ended."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.load.outcome import Answer, Ask, Outcome


@dataclass(frozen=True, slots=True)
class Line:
    """What of a line of the access log is compared."""

    status: int
    gone: bool
    cut: bool


@dataclass(slots=True)
class Book:
    """Numbers count from 0; each array has a place for each. `unlogged` are answers by the router's name of
    their request for which no line of the access log has come yet, with the number; `spare` are the requests
    under the token that is taken away at times; `unclaimed` lines that belong to no answer so far.
    `mismatched` holds what line and answer disagree on, `unpaced` the requests that were put off by an answer
    that does not say for how long."""

    outcomes: bytearray = field(default_factory=bytearray)
    began: array[float] = field(default_factory=lambda: array("d"))
    ended: array[float] = field(default_factory=lambda: array("d"))
    statuses: array[int] = field(default_factory=lambda: array("H"))
    spare: array[int] = field(default_factory=lambda: array("L"))
    unlogged: dict[bytes, int] = field(default_factory=dict)
    unclaimed: dict[bytes, Line] = field(default_factory=dict)
    lines: int = 0
    mismatched: list[str] = field(default_factory=list)
    unpaced: list[int] = field(default_factory=list)

    def open(self) -> int:
        """The number of a new request."""
        self.outcomes.append(0)
        self.began.append(time.monotonic())
        self.ended.append(0.0)
        self.statuses.append(0)
        return len(self.outcomes) - 1

    def close(self, ask: Ask, outcome: Outcome, answer: Answer) -> None:
        """The request has ended. Raises ValueError for one that had ended before."""
        number = ask.number
        if self.outcomes[number]:
            raise ValueError(f"request {number} ended twice")
        self.outcomes[number] = outcome
        self.ended[number] = time.monotonic()
        self.statuses[number] = answer.status
        if answer.status in (429, 503) and not answer.fields.get(b"retry-after", b"").isdigit():
            self.unpaced.append(number)
        if answer.request_id:
            self._answered(answer.request_id, number)

    def _answered(self, request_id: bytes, number: int) -> None:
        line = self.unclaimed.pop(request_id, None)
        if request_id in self.unlogged:
            self.mismatched.append(f"two answers have the name {request_id!r}")
        elif line is None:
            self.unlogged[request_id] = number
        else:
            self._match(request_id, number, line)

    def logged(self, request_id: bytes, line: Line) -> None:
        """A line of the access log."""
        self.lines += 1
        number = self.unlogged.pop(request_id, None)
        if request_id in self.unclaimed:
            self.mismatched.append(f"two lines have the name {request_id!r}")
        elif number is None:
            self.unclaimed[request_id] = line
        else:
            self._match(request_id, number, line)

    def _match(self, request_id: bytes, number: int, line: Line) -> None:
        outcome = Outcome(self.outcomes[number])
        well = not line.cut and not line.gone
        if line.status != self.statuses[number] or (outcome is Outcome.WHOLE and not well):
            said = f"request {number} ({request_id!r}): {outcome.name} {self.statuses[number]}"
            self.mismatched.append(f"{said}, and the access log says {line}")

    def counts(self) -> Counter[Outcome]:
        """How many ended how."""
        return Counter({Outcome(o): n for o, n in Counter(self.outcomes).items() if o})

    def of(self, *outcomes: Outcome) -> Iterator[int]:
        """The numbers of the requests that ended so."""
        wanted = frozenset(outcomes)
        return (number for number, outcome in enumerate(self.outcomes) if outcome in wanted)
