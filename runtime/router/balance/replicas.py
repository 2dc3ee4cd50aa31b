"""Which replica of an entity a request goes to.

| policy          | a request goes to                                                                       |
| --------------- | --------------------------------------------------------------------------------------- |
| `least_request` | the less busy of two drawn at random; of two in all, the less busy, or the next in turn |
| `prefix_hash`   | the one that its prompt's beginning always goes to, unless that one is far busier       |

Both choose among those that were not tried and are not ejected. Where all of them are, requests go to the one
whose ejection ends first, or has ended: never is the last replica out of use. Several workers balance each by
its own requests in flight.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, Generic, Protocol, TypeVar

from servestate.runtime.router.balance.health import Health

PREFIX_BYTES: Final = 256
"""How much of a prompt decides: beyond a system prompt's first lines it would hardly tell callers apart."""

_SPILL_FACTOR: Final = 2
_SPILL_SLACK: Final = 4
"""More than so many times the mean, and so many more, in flight: another replica is as good as its cache."""


class Load(Protocol):
    """What is known of a replica at the moment."""

    @property
    def inflight(self) -> int:
        """Requests that it has not answered."""

    @property
    def health(self) -> Health:
        """Whether it is well."""


class Replica(Protocol):
    """What is chosen."""

    @property
    def replica(self) -> str:
        """Its name, which stays the same for as long as its caches."""

    @property
    def gauge(self) -> Load:
        """Its load."""


R = TypeVar("R", bound=Replica)


class Replicas(Generic[R]):
    """The replicas of one entity, in one table. `uniform` draws from [0, 1)."""

    __slots__ = ("_all", "_by_prefix", "_named", "_sole", "_turn", "_uniform")

    def __init__(
        self, replicas: Sequence[R], policy: str, uniform: Callable[[], float] = random.random
    ) -> None:
        self._all = tuple(replicas)
        self._sole = self._all[0] if len(self._all) == 1 else None
        self._by_prefix = policy == "prefix_hash"
        self._named = {r.replica: blake2b(r.replica.encode(), digest_size=8) for r in self._all}
        self._turn = 0
        self._uniform = uniform

    def choose(self, tried: tuple[R, ...], now: float, prefix: bytes = b"") -> R | None:
        """The replica for a request whose prompt begins with `prefix` (b"": nobody knows), other than those
        it was `tried` on; None if there is none left. `now` is on the clock of `Health`."""
        sole = self._sole
        if sole is not None and not tried:
            if not sole.gauge.health.well:
                sole.gauge.health.chosen(now)
            return sole
        fit = [r for r in self._all if r.gauge.health.closed_until <= now and r not in tried]
        if not fit:
            left = [r for r in self._all if r not in tried]
            if not left:
                return None
            chosen = min(left, key=lambda r: r.gauge.health.ejected_until())
        elif len(fit) == 1:
            chosen = fit[0]
        elif prefix and self._by_prefix:
            chosen = self._prefixed(fit, prefix)
        else:
            chosen = self._least(fit)
        health = chosen.gauge.health
        if not health.well:
            health.chosen(now)
        return chosen

    def closed(self, now: float) -> bool:
        """Whether all of them are ejected: a request goes to one only where there is no better place."""
        return bool(self._all) and all([r.gauge.health.closed_until > now for r in self._all])

    def _least(self, fit: list[R]) -> R:
        if len(fit) == 2:
            self._turn ^= 1
            one, other = fit[self._turn], fit[1 - self._turn]
        else:
            # Two different ones, each pair as likely as any other.
            first = int(self._uniform() * len(fit))
            second = int(self._uniform() * (len(fit) - 1))
            one, other = fit[first], fit[second + (second >= first)]
        return one if one.gauge.inflight <= other.gauge.inflight else other

    def _prefixed(self, fit: list[R], prefix: bytes) -> R:
        """Rendezvous: without one replica, only its own prompts go elsewhere."""
        key = blake2b(prefix[:PREFIX_BYTES], digest_size=8).digest()
        home = max(fit, key=lambda r: self._score(r, key))
        busy = home.gauge.inflight
        if busy > _SPILL_SLACK:
            mean = sum(r.gauge.inflight for r in fit) / len(fit)
            if busy > _SPILL_FACTOR * mean + _SPILL_SLACK:
                return min(fit, key=lambda r: r.gauge.inflight)
        return home

    def _score(self, replica: R, key: bytes) -> bytes:
        named = self._named[replica.replica].copy()
        named.update(key)
        return named.digest()
