"""Who calls in a run of the limits, how often, and what each may: data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OWN, SHARED = "own", "shared"
"""The endpoints: one whose callers have limits of their own, and one with a limit that all share."""
USED, RESERVED = 12, 13
"""Tokens of a call, as the upstream says, and as they are reserved: six for the prompt by its length, and as
many as the answer may have at most."""
ANSWER_TOKENS = 7
GRAIN_S, EXACT_UP_TO = 0.5, 124
"""A limit beyond so many keeps what it admits within half a second as one; see `quota/windows.py`."""
PLENTY = 1_000_000


@dataclass(frozen=True, slots=True)
class Party:
    """The clients of one token. `lead` and `pace` are calls per second of all of them together, in the
    lead-in and then. A party without a pace asks until it is refused, `gap_s` after the answer before, and
    then waits as long as it is told; without a lead it does so from the beginning."""

    name: str
    clients: int
    lead: float = 0.0
    pace: float = 0.0
    gap_s: float = 0.0
    endpoint: str = OWN
    kind: str = "user_name"


@dataclass(frozen=True, slots=True)
class Bound:
    """At most `most` calls or tokens in 60 s by these callers together. `label` is what refusals name it by,
    `whose` it is for people. `hard`: more is wanted, and nothing else stands in the way, so that all of it
    has to be given."""

    label: str
    whose: str
    callers: frozenset[str]
    most: int
    hard: bool = True

    @property
    def tokens(self) -> bool:
        """Whether it counts them."""
        return self.label.endswith(" tokens")

    @property
    def calls(self) -> int:
        """How many calls it admits in 60 s."""
        return self.most // USED if self.tokens else self.most

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.label}, {self.whose}"


@dataclass(frozen=True, slots=True)
class Setup:
    """Parties, the limits of the endpoints as a bundle has them, and what follows for whom."""

    parties: tuple[Party, ...]
    limits: dict[str, list[dict[str, Any]]]
    bounds: tuple[Bound, ...]

    def of(self, caller: str) -> Iterator[Bound]:
        """Those that count for the caller."""
        return (bound for bound in self.bounds if caller in bound.callers)


def setup(share: float = 1.0) -> Setup:
    """64 clients, who want several times what they may; `mallory` wants eighty times as much. A smaller
    `share` of each limit is used up sooner."""
    each, batch, shared = (int(share * calls) for calls in (120, 40, 600))
    by_name = {name: int(share * calls) for name, calls in (("ann", 90), ("patient-2", 20), ("patient-3", 8))}
    tess = int(share * 100) * USED + RESERVED - USED
    own = (
        Party("mallory", 16, each / 60, 160.0),
        *(Party(name, 5, each / 60, 15.0) for name in ("bob", "carol", "dave")),
        Party("ann", 6, by_name["ann"] / 60, 12.0),
        Party("batch", 4, batch / 60, 6.0, kind="service_principal_name"),
        Party("tess", 4, tess / USED / 60, 16.0),
        Party("patient-0", 1, gap_s=0.02),
        Party("patient-1", 1, each / 60, gap_s=0.02),
        *(Party(n, 1, by_name[n] / 60, gap_s=0.02) for n in ("patient-2", "patient-3")),
    )
    together = tuple(
        Party(name, 5, part * shared / 60, part * 90.0, endpoint=SHARED)
        for name, part in (("sue", 0.6), ("sid", 0.3), ("sam", 0.1))
    )
    by_default = [p.name for p in own if p.name not in ("batch", "tess", *by_name)]
    of_all = 2 * (each * len(by_default) + sum(by_name.values()) + batch + tess // USED)
    limits = {
        OWN: [
            _limit(calls=of_all, tokens=PLENTY),
            _limit("user", calls=each),
            *(_limit("user", name, calls=calls) for name, calls in by_name.items()),
            _limit("service_principal", "batch", calls=batch),
            _limit("user", "tess", tokens=tess),
        ],
        SHARED: [_limit(calls=shared, tokens=PLENTY)],
    }
    all_own, all_shared = (frozenset(p.name for p in parties) for parties in (own, together))

    def of_one(name: str, most: int, label: str = "user calls") -> Bound:
        return Bound(label, name, frozenset([name]), most, hard=not name.startswith("patient"))

    bounds = (
        *(of_one(name, each) for name in by_default),
        *(of_one(name, calls) for name, calls in by_name.items()),
        of_one("batch", batch, "service_principal calls"),
        of_one("tess", tess, "user tokens"),
        Bound("endpoint calls", OWN, all_own, of_all, hard=False),
        Bound("endpoint tokens", OWN, all_own, PLENTY, hard=False),
        Bound("endpoint calls", SHARED, all_shared, shared),
        Bound("endpoint tokens", SHARED, all_shared, PLENTY, hard=False),
    )
    return Setup((*own, *together), limits, bounds)


def _limit(key: str = "endpoint", principal: str = "", **of: int) -> dict[str, Any]:
    whom = {"principal": principal} if principal else {}
    return {"renewal_period": "minute", "key": key, **whom, **of}
