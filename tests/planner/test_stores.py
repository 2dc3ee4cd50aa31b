"""The contract of `StateStore`, on the real store and on the double that most tests use instead."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import LaunchSpec
from servestate.planner.state import (
    BecameReady,
    Event,
    IllegalEvent,
    Launched,
    LaunchIntended,
    Stopped,
    StrayStopIntended,
)
from servestate.runtime.store.protocol import LockHeld, LostLock, Owner, StateStore, StoreError
from servestate.runtime.store.sqlite import SqliteStore
from tests.planner.memory_store import MemoryStore
from tests.planner.rig import LINEAGE

ANA = Owner("apply", "ana", "host-1", "1-1-boot", "https://ci.example/1")
BOB = Owner("destroy", "bob", "host-2", "2-2-boot")
ADDRESS = InstanceAddress("chat", "a", "3f9a1c27")
SPEC = LaunchSpec("process", "command", "m", args=("serve", "{port}"), env=(("K", "{{secrets/a/b}}"),))
LAUNCH: list[Event] = [LaunchIntended(ADDRESS, SPEC, "op-1"), Launched(ADDRESS, "h", "http://h.invalid")]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    made: StateStore = MemoryStore()
    if request.param == "sqlite":
        made = SqliteStore(tmp_path / "sub" / "state.db", is_gone=lambda owner: False)
    yield made
    made.close()


def test_there_is_no_state_until_one_is_created_and_the_first_one_stays(store: StateStore) -> None:
    assert store.read() is None
    assert store.held() is None
    assert store.journal(0) == []
    assert store.break_lock("x") is False
    created = store.create(LINEAGE)
    assert (created.lineage, created.serial, created.table_serial) == (LINEAGE, 0, 0)
    assert store.create("another") == created == store.read()


def test_one_lock_at_a_time(store: StateStore) -> None:
    store.create(LINEAGE)
    lock, broken = store.acquire(ANA, 1000.0)
    assert (lock.owner, lock.created, broken) == (ANA, 1000.0, None)
    assert store.held() == lock
    with pytest.raises(LockHeld) as refused:
        store.acquire(BOB, 1059.0)
    assert refused.value.lock == lock
    store.release(lock)
    assert store.held() is None
    store.release(lock)  # twice is no error


def test_an_expired_lock_is_broken_and_named(store: StateStore) -> None:
    store.create(LINEAGE)
    lock, _ = store.acquire(ANA, 1000.0)
    mine, broken = store.acquire(BOB, 1061.0)
    assert broken == lock
    assert not store.renew(lock, 1062.0)
    assert store.renew(mine, 1062.0)
    store.release(lock)
    assert store.held() is not None
    assert store.held().id == mine.id  # type: ignore[union-attr]


def test_only_the_exact_id_breaks_a_lock(store: StateStore) -> None:
    store.create(LINEAGE)
    lock, _ = store.acquire(ANA, 0.0)
    assert not store.break_lock(lock.id[:-1])
    assert store.break_lock(lock.id)
    assert not store.break_lock(lock.id)


def test_a_commit_is_read_back_and_journalled(store: StateStore) -> None:
    before = store.create(LINEAGE)
    lock, _ = store.acquire(ANA, 0.0)
    after = store.commit(before, LAUNCH, lock, 5.0)
    assert after == store.read()
    assert after.serial == 2
    entries = store.journal(0)
    assert [(e.serial, e.event, e.address) for e in entries] == [
        (1, "LaunchIntended", str(ADDRESS)),
        (2, "Launched", str(ADDRESS)),
    ]
    assert store.journal(1) == entries[1:]
    assert store.journal(2) == []


WRONG: dict[str, Callable[[StateStore], object]] = {
    "behind": lambda store: replace(store.read(), serial=0),  # type: ignore[type-var]
    "ahead": lambda store: replace(store.read(), serial=3),  # type: ignore[type-var]
    "another lineage": lambda store: replace(store.read(), lineage="x"),  # type: ignore[type-var]
}


@pytest.mark.parametrize("how", WRONG)
def test_a_commit_on_anything_but_the_stored_serial_writes_nothing(store: StateStore, how: str) -> None:
    lock, _ = store.acquire(ANA, 0.0) if store.create(LINEAGE) else (None, None)
    assert lock is not None
    stored = store.commit(store.create(LINEAGE), [StrayStopIntended(ADDRESS, "x")], lock, 0.0)
    with pytest.raises((LostLock, StoreError)):
        store.commit(WRONG[how](store), LAUNCH, lock, 0.0)  # type: ignore[arg-type]
    assert store.read() == stored
    assert len(store.journal(0)) == 1


def test_a_commit_without_the_lock_writes_nothing(store: StateStore) -> None:
    before = store.create(LINEAGE)
    lock, _ = store.acquire(ANA, 0.0)
    store.break_lock(lock.id)
    with pytest.raises(LostLock):
        store.commit(before, LAUNCH, lock, 0.0)
    other, _ = store.acquire(BOB, 0.0)
    with pytest.raises(LostLock):
        store.commit(before, LAUNCH, lock, 0.0)
    assert store.read() == before
    assert store.commit(before, LAUNCH, other, 0.0).serial == 2


def test_an_illegal_event_takes_the_whole_commit_with_it(store: StateStore) -> None:
    before = store.create(LINEAGE)
    lock, _ = store.acquire(ANA, 0.0)
    with pytest.raises(IllegalEvent):
        store.commit(before, [*LAUNCH, BecameReady(ADDRESS), Stopped(ADDRESS)], lock, 0.0)
    assert store.read() == before
    assert store.journal(0) == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def opened(path: Path, *, gone: bool = False) -> SqliteStore:
    return SqliteStore(path, is_gone=lambda owner: gone)


def test_two_processes_that_commit_at_once_both_succeed_or_one_loses(path: Path) -> None:
    """T7 in small: whatever the order, the serial counts every write that was acknowledged and no other."""
    first = opened(path)
    first.create(LINEAGE)
    lock, _ = first.acquire(ANA, 0.0)
    acknowledged = []

    def write() -> None:
        store = opened(path)
        for _ in range(30):
            state = store.read()
            assert state is not None
            try:
                acknowledged.append(store.commit(state, [StrayStopIntended(ADDRESS, "x")], lock, 0.0).serial)
            except LostLock:
                continue
        store.close()

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    state = first.read()
    assert state is not None
    assert sorted(acknowledged) == list(range(1, state.serial + 1))
    first.close()


def test_the_lock_of_a_process_that_is_gone_is_broken_at_once(path: Path) -> None:
    store = opened(path)
    store.create(LINEAGE)
    lock, _ = store.acquire(ANA, 0.0)
    store.close()
    later = opened(path, gone=True)
    assert later.acquire(BOB, 1.0)[1] == lock
    later.close()


def test_a_reader_sees_whole_commits_while_another_writes(path: Path) -> None:
    writer, reader = opened(path), opened(path)
    before = writer.create(LINEAGE)
    lock, _ = writer.acquire(ANA, 0.0)
    after = writer.commit(before, LAUNCH, lock, 0.0)
    assert reader.read() == after
    writer.close()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (b"not a database at all, but long enough to have a header of its own" * 20, "SS404"),
        (b"", None),
    ],
)
def test_a_file_that_is_no_store_is_refused_and_left_alone(
    path: Path, damage: bytes, code: str | None
) -> None:
    path.write_bytes(damage)
    store = opened(path)
    if code is None:
        assert store.read() is None
    else:
        with pytest.raises(StoreError) as refused:
            store.read()
        assert refused.value.diagnostic.code == code
    assert path.read_bytes() == damage


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE meta SET format_version = 2",
        "INSERT INTO endpoints VALUES ('x', '{}')",
        """UPDATE instances SET body = replace(body, '"phase":"starting"', '"phase":"flying"')""",
        """UPDATE instances SET body = replace(body, '{', '{"surprise":1,')""",
        """UPDATE instances SET body = replace(body, '3f9a1c27#0', '3f9a1c27')""",
    ],
)
def test_what_another_version_wrote_is_refused(path: Path, change: str) -> None:
    store = opened(path)
    before = store.create(LINEAGE)
    lock, _ = store.acquire(ANA, 0.0)
    store.commit(before, LAUNCH, lock, 0.0)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(StoreError) as refused:
        opened(path).read()
    assert refused.value.diagnostic.code == "SS404"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_so(path: Path) -> None:
    path.parent.chmod(0o500)
    with pytest.raises(StoreError) as refused:
        opened(path).create(LINEAGE)
    assert refused.value.diagnostic.code == "SS401"


def test_every_commit_is_made_durable(path: Path) -> None:
    """D24: WAL with synchronous=FULL (2), on the connection that writes."""
    store = opened(path)
    store.create(LINEAGE)
    connection = store._writer()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()
