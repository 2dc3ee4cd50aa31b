"""The books of claims: shares, who waits for whom, and what counts as in use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.address import InstanceAddress
from servestate.planner.claims import Books, Holder, room, suffices
from servestate.planner.launch import Placement

G0, G1 = ("h1", "0"), ("h1", "1")


def holder(entity: str, *gpus: str, fraction: float = 1.0, stop: str = "", waits_for: str = "") -> Holder:
    address = InstanceAddress("one", entity, "0badcafe")
    return Holder(address, Placement("h1", gpus, fraction), stop, waits_for)


def test_a_holder_of_two_gpus_is_on_both() -> None:
    pair = holder("a", "0", "1")
    books = Books([pair])
    assert books.of(G0) == books.of(G1) == [pair]
    assert list(books.on("h1")) == [pair, pair]
    assert books.of(("h2", "0")) == list(books.on("h2")) == []


def test_a_claim_counts_from_then_on_and_not_at_the_start() -> None:
    books = Books([holder("a", "0")])
    books.claim(holder("b", "1"))
    assert (books.before, books.ever, books.after()) == ({G0}, {G0, G1}, {G0, G1})


def test_who_is_to_stop_holds_its_gpu_until_then_and_not_after() -> None:
    leaving = holder("a", "0", stop="stop:a", waits_for="one")
    books = Books([leaving])
    assert books.of(G0) == [leaving]
    assert books.after() == set()


def test_what_is_freed_first_waits_for_nothing() -> None:
    leaving, other = (holder(name, "0", stop="stop", waits_for="one") for name in "ab")
    books = Books([leaving, other])
    books.free_first([leaving.address])
    assert (books.awaits(leaving), books.awaits(other)) == ("", "one")


@pytest.mark.parametrize("count", [2, 3, 6, 7, 10])
def test_equal_shares_fill_a_gpu_to_the_last_bit_and_no_further(count: int) -> None:
    share = 1 / count
    held = [holder(str(i), "0", fraction=share) for i in range(count)]
    assert suffices(room(held[1:]), share)
    assert not suffices(room(held), share)


@given(st.lists(st.floats(0.01, 1), max_size=5), st.floats(0.01, 1))
def test_what_suffices_never_takes_a_gpu_more_than_once(shares: list[float], needed: float) -> None:
    held = [holder(str(i), "0", fraction=share) for i, share in enumerate(shares)]
    if suffices(room(held), needed):
        assert sum(shares) + needed <= 1 + 1e-8
