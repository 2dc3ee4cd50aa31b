"""Draining by what the router says: wait until nothing is in flight on an instance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servestate.planner.address import InstanceAddress

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class RouterDrainer:
    """See `Drainer`. Asks the router on its control socket."""

    control_path: Path

    async def drained(
        self, address: InstanceAddress, table_version: int, timeout_s: float, report: Callable[[str], None]
    ) -> None:
        """See `Drainer.drained`. What is in flight at the deadline is cut by the stop."""
        try:
            async with asyncio.timeout(timeout_s):
                while waiting := _waits_for(await router_status(self.control_path), address, table_version):
                    report(waiting)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            report(f"gave up after {timeout_s:g} s")


def _waits_for(status: dict[str, Any] | None, address: InstanceAddress, version: int) -> str:
    """What stands in the way, "" when nothing does. No router, no requests in flight."""
    if status is None:
        return ""
    if status["table_version"] < version:
        return "the router has not adopted the new table yet"
    inflight = status["replicas"].get(str(address), {}).get("inflight", 0)
    return f"{inflight} requests in flight" if inflight else ""


async def router_status(control_path: Path) -> dict[str, Any] | None:
    """What `GET /status` on the control socket answers; None when no router listens there."""
    try:
        reader, writer = await asyncio.open_unix_connection(control_path)
    except OSError:
        return None
    try:
        writer.write(b"GET /status HTTP/1.1\r\nhost: router\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(2):
            answer = await reader.read()
    except (OSError, TimeoutError):
        return None
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        return None
    status: dict[str, Any] = json.loads(body)
    return status
