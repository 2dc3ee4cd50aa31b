"""What is now: never older than what this process wrote, and read again only where somebody wrote."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from servestate.planner.address import EndpointAddress
from servestate.planner.spec.site import Site
from servestate.planner.stamp import Stamp
from servestate.planner.state import EndpointRecord, Event, Forgotten, History, Published, State
from servestate.providers import identity
from servestate.runtime.api import view
from servestate.runtime.api.view import View, endpoint_id
from servestate.runtime.backoff import Backoff
from servestate.runtime.store.protocol import Owner
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.supervision import Supervised, Supervision, supervision_path, write_supervision
from servestate.runtime.workspace import Workspace, is_gone

OWNER = Owner("api", "ann", "host", "1-1-boot")
LINEAGE = "6dce6f68-0000-4000-8000-000000000004"
STAMP = Stamp("ann", 1.0, "api")


@dataclass
class Place:
    """A site on disk, and somebody else who writes there."""

    workspace: Workspace
    other: SqliteStore
    seen: View

    def write(self, *events: Event) -> State:
        before = self.other.create(LINEAGE)
        lock, _ = self.other.acquire(OWNER, time.time())
        after = self.other.commit(before, events, lock, time.time())
        self.other.release(lock)
        return after


@pytest.fixture
def place(tmp_path: Path) -> Place:
    path = tmp_path / "state.db"
    workspace = Workspace(tmp_path, tmp_path, Site(), SqliteStore(path, is_gone))
    return Place(workspace, SqliteStore(path, is_gone), View(workspace))


def record(name: str, block: str = "{}") -> EndpointRecord:
    return EndpointRecord(name, name, "api", block, 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass for the view."""
    now = [1000.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def reads(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for every time that the state is read."""
    store, found, real = place.workspace.store, [], SqliteStore.read

    def read(self: SqliteStore) -> State | None:
        if self is store:
            found.append(1)
        return real(self)

    monkeypatch.setattr(SqliteStore, "read", read)
    return found


def test_where_nothing_is_there_is_nothing(place: Place) -> None:
    assert place.seen.state() == State("")
    assert place.seen.name_of("x") is None
    assert place.seen.supervised() == {}


def test_what_others_write_is_seen_soon(place: Place, clock: Callable[[float], None]) -> None:
    place.seen.state()
    written = place.write(Published(record("chat"), STAMP))
    assert place.seen.state() == State("")  # not at once: it looks five times a second
    clock(view.LOOK_S)
    assert place.seen.state() == written


def test_whoever_has_written_sees_it_at_once(place: Place, clock: Callable[[float], None]) -> None:
    place.seen.state()
    written = place.write(Published(record("chat"), STAMP))
    assert place.seen.state(now=True) == written


def test_every_single_write_is_seen(place: Place) -> None:
    for number in range(50):
        written = place.write(Published(record("chat", f'{{"n":{number}}}'), STAMP))
        assert place.seen.state(now=True) == written


def test_where_nobody_writes_nothing_is_read(
    place: Place, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write(Published(record("chat"), STAMP))
    found = reads(place, monkeypatch)
    for _ in range(20):
        clock(view.LOOK_S)
        place.seen.state()
        place.seen.name_of("x")
    assert len(found) == 1


def test_a_state_that_is_put_back_is_seen(place: Place) -> None:
    first = place.write(Published(record("chat"), STAMP))
    assert place.seen.state(now=True) == first
    place.other.close()
    path = place.workspace.folder / "state.db"
    kept = path.read_bytes()
    second = place.write(Published(record("other"), STAMP))
    assert place.seen.state(now=True) == second
    place.other.close()
    path.write_bytes(kept)
    assert place.seen.state(now=True) == first


# Ids.


def test_an_id_names_its_endpoint(place: Place) -> None:
    state = place.write(Published(record("chat"), STAMP), Published(record("other"), STAMP))
    ids = {name: endpoint_id(state, one) for name, one in state.endpoints.items()}
    assert all(len(id) == 32 and int(id, 16) >= 0 for id in ids.values())
    assert len({*ids.values()}) == 2
    assert {name: place.seen.name_of(id) for name, id in ids.items()} == {"chat": "chat", "other": "other"}


def test_an_id_stays_while_its_endpoint_changes(place: Place) -> None:
    first = place.write(Published(record("chat"), STAMP))
    second = place.write(Published(record("chat", '{"x":1}'), STAMP))
    assert endpoint_id(first, first.endpoints["chat"]) == endpoint_id(second, second.endpoints["chat"])


def test_one_that_is_made_again_is_another(place: Place) -> None:
    first = place.write(Published(record("chat"), STAMP))
    old = endpoint_id(first, first.endpoints["chat"])
    second = place.write(Forgotten(EndpointAddress("chat")), Published(record("chat"), STAMP))
    assert place.seen.state(now=True) == second
    assert endpoint_id(second, second.endpoints["chat"]) != old
    assert place.seen.name_of(old) is None


def test_sites_do_not_share_ids() -> None:
    one = replace(record("chat"), history=History(1, STAMP, STAMP))
    assert endpoint_id(State(str(uuid.uuid4())), one) != endpoint_id(State(str(uuid.uuid4())), one)


def test_one_of_before_there_were_histories_has_one(place: Place) -> None:
    assert len(endpoint_id(State(LINEAGE), record("chat"))) == 32


# Supervision.


def supervise(place: Place, process: str) -> Supervised:
    one = Supervised(Backoff(3, None, 5.0), 5.0, "exit code 1")
    write_supervision(supervision_path(place.workspace), Supervision(process, {"chat/only": one}))
    return one


def test_what_the_controller_says(place: Place) -> None:
    assert place.seen.supervised() == {}
    one = supervise(place, str(identity.identify(os.getpid())))
    assert place.seen.supervised() == {"chat/only": one}


def test_what_a_controller_said_that_has_ended_does_not_count(place: Place) -> None:
    supervise(place, "1-1-another-boot")
    assert place.seen.supervised() == {}
