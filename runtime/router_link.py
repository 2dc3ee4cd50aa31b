"""What the running router says of itself: which table it has adopted, what is in flight."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servestate.planner.address import InstanceAddress
from servestate.planner.plural import counted
from servestate.providers.protocol import PermanentError, TransientError

_POLL_S = 0.05
_ANSWER_S = 2.0

ADOPTION_S = 5.0
"""How long a running router may take to adopt a table; it looks every 50 ms."""


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """See `RouterLink`. Asks the router on its control socket."""

    control_path: Path

    async def adopted(self, table_version: int) -> None:
        """See `RouterLink.adopted`."""
        reason = ""
        try:
            async with asyncio.timeout(ADOPTION_S):
                while True:
                    try:
                        status = await router_status(self.control_path, brief=True)
                    except TransientError as error:
                        reason = str(error)
                    else:
                        reason = (status or {}).get("table_error") or ""
                        # A table that it refuses counts as not adopted even where the version it routes by is
                        # higher: so it is after an older state was restored.
                        if status is None or (_routes_by(status, table_version) and not reason):
                            return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise _not_adopted(reason) from None

    async def drained(
        self, address: InstanceAddress, timeout_s: float, report: Callable[[str], None]
    ) -> None:
        """See `RouterLink.drained`. What is in flight at the deadline is cut by the stop that follows."""
        try:
            async with asyncio.timeout(timeout_s):
                while waiting_for := await self._in_flight(address):
                    report(waiting_for)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            report(f"gave up after {timeout_s:g} s")

    async def _in_flight(self, address: InstanceAddress) -> str:
        """What must end before the instance may be stopped, for people; "" for nothing."""
        try:
            status = await router_status(self.control_path, brief=True)
        except TransientError as error:
            return str(error)
        count: int = (status or {}).get("replicas", {}).get(str(address), {}).get("inflight", 0)
        return f"{counted(count, 'request')} in flight" if count else ""


async def router_trouble(control_path: Path, table_path: Path, table_version: int) -> str:
    """Why a running router does not route by that version of the table; "" when it does, and where none runs.
    For plans, which hold no path of the machine."""
    if not table_version:
        return ""
    try:
        status = await router_status(control_path)
    except TransientError:
        return "does not answer"
    if status is None:
        return ""
    if error := status["table_error"]:
        return f"refuses the routing table: {error.partition(f'{table_path.name}: ')[2] or error}"
    return "" if _routes_by(status, table_version) else f"routing by version {status['table_version']}"


def _routes_by(status: dict[str, Any], table_version: int) -> bool:
    """Whether every worker routes by that version of the table, or a later one. None is one that has no
    worker for now: whoever comes reads the table as it then is."""
    adopted = status["table_version"]
    return adopted is None or adopted >= table_version


def _not_adopted(reason: str) -> PermanentError:
    reason = reason or f"it did not do so within {ADOPTION_S:g} s"
    fix = "mend that and apply again; until then it routes as before, and nothing that it needs was stopped"
    return PermanentError("SS609", f"the running router has not adopted the new routing table: {reason}", fix)


async def router_status(control_path: Path, *, brief: bool = False) -> dict[str, Any] | None:
    """What `GET /status` on the control socket answers; None when no router listens there. `brief`: at least
    its table, its connections and the replicas that requests run on, for who asks again and again.

    Raises TransientError when one listens and gives no answer. A router that is paused or busy goes on
    routing afterwards, so it must never be taken for one that is not there.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(control_path)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise TransientError(f"the router cannot be asked on {control_path}: {error}") from error
    try:
        # A router of a former version does not look at the query, and tells all.
        target = b"/status?brief" if brief else b"/status"
        writer.write(b"GET %b HTTP/1.1\r\nhost: router\r\nconnection: close\r\n\r\n" % target)
        async with asyncio.timeout(_ANSWER_S):
            answer = await reader.read()
        return _status_in(answer)
    except (OSError, ValueError) as error:  # a TimeoutError is an OSError
        raise TransientError(f"the router does not answer on {control_path}") from error
    finally:
        writer.close()


def _status_in(answer: bytes) -> dict[str, Any]:
    """The status that an answer carries. Raises ValueError for anything else, such as half an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:  # 503: one of its workers does not answer
        raise ValueError("not a status")
    status: dict[str, Any] = json.loads(body)
    return status
