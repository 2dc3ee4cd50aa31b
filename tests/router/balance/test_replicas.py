"""Which replica: the less busy, the one that knows the prompt, and never none while one was not tried."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.runtime.router.balance.health import Health, Trial
from servestate.runtime.router.balance.policy import HealthPolicy
from servestate.runtime.router.balance.replicas import PREFIX_BYTES, Replicas

NOW = 1000.0
SPREAD = 4  # standard deviations that a random share may be off


@dataclass
class Gauge:
    health: Health = field(default_factory=lambda: Health(HealthPolicy()))
    inflight: int = 0


@dataclass(eq=False)
class One:
    replica: str
    gauge: Gauge = field(default_factory=Gauge)


def ones(count: int) -> list[One]:
    return [One(f"chat@abc#{i}") for i in range(count)]


def policy(replicas: list[One], name: str = "least_request", seed: int = 7) -> Replicas[One]:
    return Replicas(replicas, name, random.Random(seed).random)


def eject(one: One, now: float = NOW) -> None:
    for _ in range(5):
        one.gauge.health.failed(now, "connect")
    assert not one.gauge.health.well


def prompts(count: int) -> list[bytes]:
    return [b"You are prompt number %d." % n for n in range(count)]


def test_one_replica_and_none() -> None:
    (one,) = replicas = ones(1)
    assert policy(replicas).choose((), NOW) is one
    eject(one)
    assert policy(replicas).choose((), NOW) is one
    assert policy(replicas).choose((one,), NOW) is None
    assert policy([]).choose((), NOW) is None


def test_of_two_the_less_busy_and_ties_in_turn() -> None:
    one, other = replicas = ones(2)
    chooser = policy(replicas)
    turns = [chooser.choose((), NOW) for _ in range(10)]
    assert Counter(r.replica for r in turns if r) == {one.replica: 5, other.replica: 5}
    assert all(a is not b for a, b in itertools.pairwise(turns))
    one.gauge.inflight = 1
    assert all(chooser.choose((), NOW) is other for _ in range(10))
    assert all(chooser.choose((other,), NOW) is one for _ in range(10))


def test_of_many_two_random_choices_level_the_load() -> None:
    """Balls into bins: two choices keep the fullest near the mean, one choice does not."""
    replicas = ones(10)
    chooser = policy(replicas)
    for _ in range(10_000):
        chosen = chooser.choose((), NOW)
        assert chosen is not None
        chosen.gauge.inflight += 1
    assert max(r.gauge.inflight for r in replicas) <= 1000 + 5
    blind = Counter(random.Random(7).randrange(10) for _ in range(10_000))
    assert max(blind.values()) > 1000 + 5


def test_two_choices_are_two_and_each_pair_is_as_likely() -> None:
    replicas = ones(4)
    busy = replicas[2]
    busy.gauge.inflight = 1
    chooser = policy(replicas)
    found = Counter(r.replica for _ in range(9000) if (r := chooser.choose((), NOW)))
    assert busy.replica not in found  # it always loses to the other one, which is never itself
    for idle in (r for r in replicas if r is not busy):
        assert abs(found[idle.replica] - 3000) <= SPREAD * sqrt(9000 * 2 / 9)


def test_prompts_that_begin_alike_go_to_one_replica_and_all_get_their_share() -> None:
    replicas = ones(4)
    chooser = policy(replicas, "prefix_hash")
    start = b"system: be brief. " * 20
    homes = {chooser.choose((), NOW, start + b"%d" % n) for n in range(100)}
    assert len(start) > PREFIX_BYTES
    assert len(homes) == 1
    found = Counter(r.replica for p in prompts(8000) if (r := chooser.choose((), NOW, p)))
    for replica in replicas:
        assert abs(found[replica.replica] - 2000) <= SPREAD * sqrt(8000 * 3 / 16)


def test_every_process_sends_a_prompt_to_the_same_replica() -> None:
    """Written down once: workers that disagree would halve what caches are worth."""
    chooser = policy(ones(4), "prefix_hash")
    found = [r.replica[-1] for p in prompts(12) if (r := chooser.choose((), NOW, p))]
    assert "".join(found) == "233223130202"


def test_without_one_replica_only_its_own_prompts_move() -> None:
    replicas = ones(4)
    chooser, fewer = policy(replicas, "prefix_hash"), policy(replicas[:3], "prefix_hash")
    homes = [chooser.choose((), NOW, prompt) for prompt in prompts(500)]
    assert all(
        fewer.choose((), NOW, p) is home
        for p, home in zip(prompts(500), homes, strict=True)
        if home is not replicas[3]
    )
    eject(replicas[3])
    assert [chooser.choose((), NOW, p) for p in prompts(500)] == [
        fewer.choose((), NOW, p) for p in prompts(500)
    ]


def test_a_replica_that_is_far_busier_than_the_mean_spills() -> None:
    replicas = ones(3)
    chooser = policy(replicas, "prefix_hash")
    home = chooser.choose((), NOW, b"prompt")
    assert home is not None
    away = [r for r in replicas if r is not home]
    away[0].gauge.inflight = 3
    # With 18 the bound is 2 x (18 + 3 + 0) / 3 + 4 = 18, with 19 it is 18.7.
    for inflight, spills in ((12, False), (14, False), (18, False), (19, True)):
        home.gauge.inflight = inflight
        assert chooser.choose((), NOW, b"prompt") is (away[1] if spills else home)


def test_prompts_without_a_beginning_go_to_the_less_busy() -> None:
    one, other = replicas = ones(2)
    one.gauge.inflight = 1
    assert all(policy(replicas, "prefix_hash").choose((), NOW) is other for _ in range(5))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_an_ejected_replica_gets_one_trial_and_then_its_share(count: int) -> None:
    replicas = ones(count)
    ill = replicas[0]
    chooser = policy(replicas)
    eject(ill)
    assert all(chooser.choose((), NOW + 9.9) is not ill for _ in range(200))
    chosen = [chooser.choose((), NOW + 10) for _ in range(200)]
    assert chosen.count(ill) == 1
    assert isinstance(ill.gauge.health.state, Trial)
    ill.gauge.health.succeeded(NOW + 11)
    assert sum(chooser.choose((), NOW + 11) is ill for _ in range(200)) > 10


def test_when_all_are_ejected_the_one_that_ends_first_is_used_and_its_success_counts_at_once() -> None:
    replicas = ones(3)
    chooser = policy(replicas)
    for late, one in enumerate(replicas):
        eject(one, NOW + late)
    now = NOW + 5
    assert all(chooser.choose((), now) is replicas[0] for _ in range(5))
    assert chooser.choose((replicas[0],), now) is replicas[1]
    replicas[0].gauge.health.failed(now, "connect")
    assert replicas[0].gauge.health.closed_until == NOW + 10
    replicas[0].gauge.health.succeeded(now)
    assert replicas[0].gauge.health.well


def test_a_trial_that_is_under_way_is_a_better_last_resort_than_an_ejection() -> None:
    one, other = replicas = ones(2)
    chooser = policy(replicas)
    eject(one)
    eject(other, NOW + 9)
    assert [chooser.choose((), NOW + 10) for _ in range(3)] == [one] * 3


STEP = st.tuples(
    st.integers(0, 3), st.sampled_from(["ok", "fail", "probe ok", "probe fail", "left"]), st.floats(0, 20)
)


@given(st.integers(1, 4), st.sampled_from(["least_request", "prefix_hash"]), st.lists(STEP, max_size=60))
def test_never_the_last_replica(count: int, name: str, steps: list[tuple[int, str, float]]) -> None:
    """Whatever happened: a request that was not tried everywhere has somewhere to go, and that is never an
    ejected replica while another one is not."""
    replicas = ones(count)
    chooser, now = policy(replicas, name), NOW
    for which, event, wait in steps:
        now += wait
        health = replicas[which % count].gauge.health
        if event == "ok":
            health.succeeded(now)
        elif event == "fail":
            health.failed(now, "5xx")
        elif event == "left":
            health.abandoned()
        elif event == "probe ok":
            health.probe_succeeded(now)
        else:
            health.probe_failed(now)
        tried: tuple[One, ...] = ()
        for _ in range(count):
            closed = [r for r in replicas if r.gauge.health.closed_until > now]
            chosen = chooser.choose(tried, now, b"prompt")
            assert chosen is not None
            assert chosen not in tried
            assert chosen not in closed or all(r in closed for r in replicas if r not in tried) or count == 1
            tried += (chosen,)
        assert chooser.choose(tried, now, b"prompt") is None
