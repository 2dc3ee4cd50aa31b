"""A beat of the lock that the storage refuses is missed, not the last one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from servestate.planner.diagnostics import Diagnostic
from servestate.runtime import apply
from servestate.runtime.store.protocol import Lock, Owner, StoreError


class Store:
    """Renews at the third try."""

    def __init__(self) -> None:
        self.tries = 0
        self.renewed = asyncio.Event()

    def renew(self, lock: Lock, now: float) -> bool:
        self.tries += 1
        if self.tries < 3:
            raise StoreError(Diagnostic("SS403", "database is locked"))
        self.renewed.set()
        return True


async def _beats(store: Any) -> None:
    lock = Lock("id", Owner("apply", "ana", "here", "1.1.0"), 0.0, 60.0)
    unused: Any = None
    async with apply._heartbeat(store, lock, unused), asyncio.timeout(5):
        await store.renewed.wait()


def test_a_busy_store_does_not_end_the_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "HEARTBEAT_S", 0.001)
    asyncio.run(_beats(Store()))
