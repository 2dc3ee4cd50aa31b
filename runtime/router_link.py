"""What the running router says of itself: which table it has adopted, what is in flight."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servestate.planner.address import InstanceAddress
from servestate.providers.protocol import PermanentError

_POLL_S = 0.05


ADOPTION_S = 5.0
"""How long a running router may take to adopt a table; it looks every 50 ms."""


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """See `RouterLink`. Asks the router on its control socket."""

    control_path: Path

    async def adopted(self, table_version: int) -> None:
        """See `RouterLink.adopted`."""
        status: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(ADOPTION_S):
                while (status := await router_status(self.control_path)) is not None:
                    if status["table_version"] >= table_version:
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise _not_adopted(status) from None

    async def drained(
        self, address: InstanceAddress, timeout_s: float, report: Callable[[str], None]
    ) -> None:
        """See `RouterLink.drained`. What is in flight at the deadline is cut by the stop that follows."""
        try:
            async with asyncio.timeout(timeout_s):
                while (count := _inflight(await router_status(self.control_path), address)) > 0:
                    report(f"{count} requests in flight")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            report(f"gave up after {timeout_s:g} s")


def _not_adopted(status: dict[str, Any] | None) -> PermanentError:
    reason = (status or {}).get("table_error") or f"it did not do so within {ADOPTION_S:g} s"
    fix = "mend that and apply again; until then it routes as before, and nothing that it needs was stopped"
    return PermanentError("SS609", f"the running router has not adopted the new routing table: {reason}", fix)


def _inflight(status: dict[str, Any] | None, address: InstanceAddress) -> int:
    count: int = (status or {}).get("replicas", {}).get(str(address), {}).get("inflight", 0)
    return count


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
