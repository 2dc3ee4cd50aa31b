"""Which entity a request goes to: the policies by which an endpoint's traffic is split.

| policy   | a request goes to                   | how exact                                                 |
| -------- | ----------------------------------- | --------------------------------------------------------- |
| `exact`  | the next one of a cycle             | in every window of a cycle, exactly the weights           |
| `random` | one drawn by weight                 | deviates by sqrt(n p (1 - p)) over n requests             |
| `sticky` | the one that its key always goes to | over many keys; new weights move only what they have to   |

An entity of weight 0 is never picked.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from math import gcd, log
from typing import Protocol

from servestate.planner.table import Traffic


def cycle(weights: Sequence[int]) -> tuple[int, ...]:
    """The picks of one cycle, as indexes into `weights`, `sum(weights) / gcd(weights)` of them: smooth
    weighted round robin. Raises ValueError for weights of which none is above 0, or one below.

    Each step adds every weight to its own counter, takes the largest (the first of equals) and lowers it by
    the sum. The counters are back at zero after one cycle, so repeating it is the endless sequence, and any
    window of a cycle's length holds each index exactly in proportion. Weight 0 never occurs.
    """
    total = sum(weights)
    if total <= 0 or min(weights) < 0:
        raise ValueError(f"weights {list(weights)} give no split")
    current = [0] * len(weights)
    picks = []
    for _ in range(total // gcd(*weights)):
        current = [have + weight for have, weight in zip(current, weights, strict=True)]
        # A weight of 0 stays at 0 and could tie with a counter that is 0 or below.
        best = max((i for i, w in enumerate(weights) if w), key=lambda i: (current[i], -i))
        current[best] -= total
        picks.append(best)
    return tuple(picks)


class Draws(Protocol):
    """Numbers that all workers of a router draw from: 0, 1, 2, … each exactly once."""

    def next(self) -> int:
        """The next number."""


class Split:
    """The running split of one endpoint. `assigned` counts the picks per index since it began, by this
    process. `wants_key` says whether a key can change the pick, so that none is looked for in vain."""

    __slots__ = ("assigned", "wants_key")

    assigned: list[int]
    wants_key: bool

    def pick(self, key: str = "") -> int:
        """The index of the entity for a request with that key ("": it has none)."""
        raise NotImplementedError


def split_of(
    traffic: Traffic,
    weights: Sequence[int],
    names: Sequence[str],
    draws: Draws | None = None,
    uniform: Callable[[], float] = random.random,
) -> Split:
    """The split that `traffic` asks for, of entities with those names and weights. Raises ValueError for
    weights that give none.

    `draws` is where the workers that share a port take their turns from, so that the cycle is exact over all
    of them; None where there is no other worker. `uniform` draws from [0, 1).
    """
    match traffic.split:
        case "exact":
            return Exact(weights, draws)
        case "random":
            return Random(weights, uniform)
        case "sticky":
            salt = traffic.sticky.salt if traffic.sticky is not None else ""
            return Sticky(weights, names, salt, Exact(weights, draws))
    raise ValueError(f"no split is called {traffic.split!r}")


class Exact(Split):
    """The entities in turn, as `cycle` has them."""

    __slots__ = ("_picks",)

    def __init__(self, weights: Sequence[int], draws: Draws | None = None) -> None:
        picks = cycle(weights)
        self._picks = itertools.cycle(picks) if draws is None else _shared(picks, draws)
        self.assigned = [0] * len(weights)
        self.wants_key = False

    def pick(self, key: str = "") -> int:
        """See `Split`."""
        index = next(self._picks)
        self.assigned[index] += 1
        return index


def _shared(picks: tuple[int, ...], draws: Draws) -> Iterator[int]:
    """The endless cycle, whose positions others use up too."""
    # Not a generator: one draw that raises would end it for ever.
    return map(lambda _: picks[draws.next() % len(picks)], itertools.repeat(None))


class Random(Split):
    """One position of the cycle by lot, which is an entity by weight."""

    __slots__ = ("_picks", "_uniform")

    def __init__(self, weights: Sequence[int], uniform: Callable[[], float] = random.random) -> None:
        self._picks = cycle(weights)
        self._uniform = uniform
        self.assigned = [0] * len(weights)
        self.wants_key = False

    def pick(self, key: str = "") -> int:
        """See `Split`."""
        picks = self._picks
        index = picks[int(self._uniform() * len(picks))]
        self.assigned[index] += 1
        return index


class Sticky(Split):
    """Weighted rendezvous hashing: each key gives each entity a score, and the largest wins.

    With u the hash of key and entity in (0, 1), the score is -weight / ln(u): of scores so made, each is the
    largest as often as its weight says. A weight that changes moves that entity's scores only, so a key
    moves only away from one that lost or to one that gained. All workers agree, before and after a restart.
    """

    __slots__ = ("_entities", "_unkeyed")

    def __init__(self, weights: Sequence[int], names: Sequence[str], salt: str, unkeyed: Exact) -> None:
        self._entities = [
            (index, weight, blake2b(f"{name}\0{salt}\0".encode("utf-8", "surrogatepass"), digest_size=8))
            for index, (weight, name) in enumerate(zip(weights, names, strict=True))
            if weight
        ]
        self._unkeyed = unkeyed
        self.assigned = unkeyed.assigned  # one count, however a pick came about
        self.wants_key = True

    def pick(self, key: str = "") -> int:
        """See `Split`. A request without a key takes its turn."""
        if not key:
            return self._unkeyed.pick()
        data = key.encode("utf-8", "surrogatepass")
        best, winner = 0.0, -1
        for index, weight, named in self._entities:
            hashed = named.copy()
            hashed.update(data)
            score = -weight / log(_unit(hashed.digest()))
            if score > best:
                best, winner = score, index
        self.assigned[winner] += 1
        return winner


def _unit(digest: bytes) -> float:
    """A number strictly between 0 and 1: 52 bits and a half, which a float holds without rounding."""
    return ((int.from_bytes(digest, "big") >> 12) + 0.5) * 2.0**-52
