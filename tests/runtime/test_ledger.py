"""What the API has promised survives whoever promised it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servestate.runtime.api.ledger import EntityNote, Ledger, Status, Update
from servestate.runtime.store.protocol import StoreError

UPDATE = Update(
    "chat",
    {"name": "chat", "config": {"served_entities": [{"name": "a"}, {"name": "b"}]}},
    "digest of before",
    1_000_000.5,
    "ann@example.com",
)
NOTES = {
    "a": EntityNote("DEPLOYMENT_FAILED", "exit code 1\nlast line"),
    "b": EntityNote("DEPLOYMENT_ABORTED"),
}
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
UPDATES = st.builds(
    Update,
    st.sampled_from(["chat", "other"]),
    st.fixed_dictionaries({"name": TEXT, "config": st.dictionaries(TEXT, TEXT | st.none(), max_size=2)}),
    TEXT,
    st.floats(0, 2e9),
    TEXT,
    st.booleans(),
    st.sampled_from(Status),
    TEXT,
    st.dictionaries(TEXT, st.builds(EntityNote, TEXT, TEXT), max_size=2),
)


def reopened(ledger: Ledger, path: Path) -> Ledger:
    ledger.close()
    return Ledger(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "api.db"


def test_a_new_one_is_empty(path: Path) -> None:
    ledger = Ledger(path)
    assert (ledger.updates(), ledger.get("chat"), ledger.knows_plan("x")) == ({}, None, False)
    ledger.close()


def test_one_that_is_spoilt_is_told(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match=r"(?s)SS415 .*api\.db.*move the file away"):
        Ledger(path)


@pytest.mark.parametrize("body", ["{", "[]", "{}", '{"entities": {}, "status": "IN_PROGRESS", "later": 1}'])
def test_one_of_another_version_is_told(path: Path, body: str) -> None:
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO updates VALUES ('chat', ?)", (body,))
    with pytest.raises(StoreError, match="SS415"):
        Ledger(path)


def test_a_promise_outlives_who_made_it(path: Path) -> None:
    ledger = Ledger(path)
    ledger.put(UPDATE)
    ledger = reopened(ledger, path)
    assert ledger.updates() == {"chat": UPDATE}
    ledger.close()


def test_a_promise_is_there_for_others_before_it_is_answered(path: Path) -> None:
    """Committed, not merely written: whoever is killed after `put` has promised."""
    ledger, other = Ledger(path), Ledger(path)
    ledger.put(UPDATE)
    assert Ledger(path).get("chat") == UPDATE
    ledger.close()
    other.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(UPDATES, max_size=4))
def test_whatever_is_put_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, updates: list[Update]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "api.db"
    ledger = Ledger(path)
    for update in updates:
        ledger.put(update)
    kept = ledger.updates()
    assert kept == {update.endpoint: update for update in updates}
    ledger = reopened(ledger, path)
    assert ledger.updates() == kept
    ledger.close()


def test_one_that_ended_says_why(path: Path) -> None:
    ledger = Ledger(path)
    ledger.put(UPDATE.ended(Status.FAILED, "exit code 1", NOTES))
    found = reopened(ledger, path).get("chat")
    assert found is not None
    assert (found.status, found.message, found.entities) == (Status.FAILED, "exit code 1", NOTES)
    assert found.config == UPDATE.config


def test_a_newer_one_takes_the_place_of_an_older_one(path: Path) -> None:
    ledger = Ledger(path)
    ledger.put(UPDATE.ended(Status.CANCELED, "", {}))
    ledger.put(UPDATE)
    ledger = reopened(ledger, path)
    assert ledger.updates() == {"chat": UPDATE}
    ledger.close()


ENDS: dict[str, Callable[[Ledger, Update], object]] = {
    "done": lambda ledger, update: ledger.end(update, None),
    "failed": lambda ledger, update: ledger.end(update, update.ended(Status.FAILED, "", {})),
}


@pytest.mark.parametrize("how", ENDS)
def test_only_the_one_that_is_there_can_be_ended(path: Path, how: str) -> None:
    """Somebody has cancelled it, or wants another one: that must not be lost."""
    ledger = Ledger(path)
    ledger.put(UPDATE)
    newer = UPDATE.ended(Status.CANCELED, "canceled by bob", {})
    ledger.put(newer)
    assert ENDS[how](ledger, UPDATE) is False
    assert ledger.get("chat") == newer
    assert reopened(ledger, path).get("chat") == newer


@pytest.mark.parametrize("how", ENDS)
def test_the_one_that_is_there_ends(path: Path, how: str) -> None:
    ledger = Ledger(path)
    ledger.put(UPDATE)
    assert ENDS[how](ledger, UPDATE) is True
    left = ledger.get("chat")
    assert (left is None) if how == "done" else (left is not None and left.status is Status.FAILED)
    assert reopened(ledger, path).get("chat") == left


def test_of_many_who_end_it_one_does(path: Path) -> None:
    ledger = Ledger(path)
    ledger.put(UPDATE)
    won: list[bool] = []
    threads = [threading.Thread(target=lambda: won.append(ledger.end(UPDATE, None))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 15 + [True]
    ledger.close()


def test_what_is_removed_stays_away(path: Path) -> None:
    ledger = Ledger(path)
    ledger.put(UPDATE)
    assert ledger.end(UPDATE, None)
    ledger = reopened(ledger, path)
    assert ledger.updates() == {}
    ledger.close()


def test_a_thousand_plans_are_known(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(1003):
        ledger.add_plan(f"plan {number}")
    ledger.add_plan("plan 1002")  # planned again: the same bytes
    ledger = reopened(ledger, path)
    assert [number for number in range(1003) if not ledger.knows_plan(f"plan {number}")] == [0, 1, 2]
    ledger.close()


def test_the_lists_it_gives_are_the_callers_own(path: Path) -> None:
    ledger = Ledger(path)
    ledger.put(UPDATE)
    ledger.updates().clear()
    assert ledger.get("chat") == UPDATE
    ledger.close()
