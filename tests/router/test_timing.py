"""How long a refusal takes tells nothing: unknown, nearly right and revoked tokens are one class."""

from __future__ import annotations

import gc
import hmac
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from servestate.runtime.keyring import Keyring, write_keyring
from servestate.runtime.router.access import Access
from servestate.runtime.router.http.errors import UNAUTHENTICATED, Refused, refused
from tests.router import rig

TRIALS = 20_000
REAL = "sst_" + "3f9a1c07" * 8
REVOKED = [f"sst_{n:x}".ljust(68, "b") for n in range(1000, 1500)]
Lookup = Callable[[bytes], object]


def changed(source: random.Random, at: int) -> str:
    """The real token but for one byte. Which one varies, so that no digest is looked up again and again: its
    place in a table would be a difference of its own, though one that tells nothing."""
    digit = source.choice([c for c in "0123456789abcdef" if c != REAL[at]])
    return REAL[:at] + digit + REAL[at + 1 :]


def unknown(source: random.Random) -> str:
    return "sst_" + source.randbytes(32).hex()


def early(source: random.Random) -> str:
    """The right token but for a byte in its first half."""
    return changed(source, 4 + source.randrange(32))


def late(source: random.Random) -> str:
    """The right token but for a byte in its second half."""
    return changed(source, 36 + source.randrange(32))


def revoked(source: random.Random) -> str:
    """A token that was good until the keyring before."""
    return source.choice(REVOKED)


KINDS: dict[str, Callable[[random.Random], str]] = {
    "unknown": unknown,
    "early byte": early,
    "late byte": late,
    "revoked": revoked,
}


def others(count: int) -> dict[str, dict[str, str]]:
    return {f"sst_{n:064x}": {"user_name": f"u{n}"} for n in range(count)}


def access_with_a_history(folder: Path) -> Access:
    """Many tokens, half of which have been revoked since."""
    path = folder / "access.json"
    before = {token: {"user_name": "bob"} for token in REVOKED}
    write_keyring(path, rig.keyring(**{REAL: {"user_name": "ann"}}, **before, **others(500)))
    access = Access(path)
    assert access.visitor(b"Bearer " + REVOKED[7].encode()).caller.name == "bob"
    write_keyring(path, rig.keyring(**{REAL: {"user_name": "ann"}}, **others(500)))
    access.poll(time.monotonic() + 10)
    assert access.visitor(b"Bearer " + REAL.encode()).caller.name == "ann"
    return access


def measured(lookup: Lookup, seed: int) -> dict[str, list[int]]:
    """Nanoseconds of each refusal, the kinds in random order so that no drift falls on one of them."""
    source = random.Random(seed)
    trials = [kind for kind in KINDS for _ in range(TRIALS // len(KINDS))]
    source.shuffle(trials)
    headers = [b"Bearer " + KINDS[kind](source).encode() for kind in trials]
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    clock = time.perf_counter_ns
    gc.collect()
    gc.disable()
    try:
        for kind, header in zip(trials, headers, strict=True):
            began = clock()
            try:
                lookup(header)
            except Refused:
                took = clock() - began  # before anything of our own is looked up
                found[kind].append(took)
    finally:
        gc.enable()
    assert sum(map(len, found.values())) == TRIALS, "somebody was let in"
    return found


def typical(times: Iterable[int]) -> list[int]:
    """Without the slowest tenth, which is the machine's doing."""
    kept = sorted(times)
    return kept[: len(kept) * 9 // 10]


def welch(a: list[int], b: list[int]) -> float:
    """Welch's t: how far apart two means are, in what their spread would allow."""
    spread = statistics.variance(a) / len(a) + statistics.variance(b) / len(b)
    return abs(statistics.fmean(a) - statistics.fmean(b)) / math.sqrt(spread)


def differences(found: dict[str, list[int]]) -> list[str]:
    """What tells two kinds apart."""
    kept = {kind: typical(times) for kind, times in found.items()}
    wrong = []
    for kind, times in kept.items():
        base = kept["unknown"]
        medians = statistics.median(times), statistics.median(base)
        apart = abs(medians[0] - medians[1])
        t = welch(times, base) if kind != "unknown" else 0.0
        print(f"{kind}: median {medians[0]:.0f} ns, t {t:.2f}")
        if apart > max(0.03 * medians[1], 5000):
            wrong.append(f"{kind}: {medians[0]:.0f} ns, unknown {medians[1]:.0f} ns")
        if t >= 4.5:
            wrong.append(f"{kind}: t = {t:.1f}")
    return wrong


@pytest.mark.slow
def test_refusals_take_alike_long(tmp_path: Path) -> None:
    """Measured up to five times: a real difference shows in each, a burst of other work in one."""
    access = access_with_a_history(tmp_path)
    attempts = []
    for seed in range(5):
        attempts.append(differences(measured(access.visitor, seed)))
        if not attempts[-1]:
            return
    pytest.fail(f"{attempts}")


class Leaky:
    """A look-up that compares with what is right, byte by byte, and remembers who was revoked."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def __call__(self, header: bytes) -> None:
        token = header.removeprefix(b"Bearer ").decode()
        for mine, theirs in zip(REAL, token, strict=True):
            if mine != theirs:
                break
        if token in REVOKED:
            hmac.digest(self._keyring.key, token.encode(), "sha256")
        raise refused("no", UNAUTHENTICATED, 401)


@pytest.mark.slow
def test_the_check_notices_a_look_up_that_stops_early() -> None:
    leaky = Leaky(rig.keyring(**{REAL: {"user_name": "ann"}}))
    assert {wrong.split(":")[0] for wrong in differences(measured(leaky, 1))} >= {"late byte", "revoked"}


def test_all_kinds_get_the_same_words(tmp_path: Path) -> None:
    access = access_with_a_history(tmp_path)
    source = random.Random(1)
    told = set()
    for token in [kind(source) for kind in KINDS.values()] + ["", "x", REAL.upper(), REAL + " x", " "]:
        with pytest.raises(Refused) as caught:
            access.visitor(b"Bearer " + token.encode())
        told.add((caught.value.failure, caught.value.close))
    assert len(told) == 1
