"""Waiting until something is ready: probe, pause a little longer each time, stop at the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from servestate.planner.launch import Spec
from servestate.providers.protocol import (
    Failed,
    PermanentError,
    Provider,
    Readiness,
    Starting,
    TransientError,
)

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.5
LOG_LINES = 20

REPEAT_S = 10.0
"""How often the same progress is reported again."""


async def await_ready(
    provider: Provider,
    handle: str,
    spec: Spec,
    timeout_s: float,
    report: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return once `handle` is ready; at least one probe is made. `report` gets each new line of progress.

    Raises PermanentError with the probe's own code as soon as it says that this will never get ready, and
    SS508 after `timeout_s` seconds. A TransientError of a probe is tried again until then.
    """
    from tenacity import (  # here: `servestate plan` waits for nothing and must start fast
        AsyncRetrying,
        RetryCallState,
        retry_if_exception_type,
        retry_if_result,
        wait_exponential,
    )

    deadline = clock() + timeout_s
    backoff = wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S)
    progress = _Progress(report, clock)

    def pause(state: RetryCallState) -> float:
        return max(0.0, min(backoff(state), deadline - clock()))

    retrying = AsyncRetrying(
        retry=retry_if_result(lambda seen: isinstance(seen, Starting))
        | retry_if_exception_type(TransientError),
        wait=pause,
        stop=lambda state: clock() >= deadline,
        sleep=sleep,
        before_sleep=lambda state: progress.note(_said(state)),
        retry_error_callback=lambda state: Starting(_said(state)),
    )
    seen: Readiness = await retrying(provider.probe, handle, spec)
    match seen:
        case Failed():
            raise PermanentError(seen.code, seen.why, "correct the cause above, then apply again")
        case Starting():
            raise await _too_late(provider, handle, timeout_s, seen.progress)


class _Progress:
    """Passes on what is new, and what is not new every so often: whoever watches sees that it goes on."""

    def __init__(self, report: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._report = report
        self._clock = clock
        self._last = ("", clock())

    def note(self, text: str) -> None:
        last, when = self._last
        if text and (text != last or self._clock() - when >= REPEAT_S):
            self._last = (text, self._clock())
            self._report(text)


def _said(state: object) -> str:
    """What the last probe said: its progress, or the error it raised."""
    outcome = getattr(state, "outcome", None)
    if outcome is None:
        return ""
    if error := outcome.exception():
        return str(error)
    result = outcome.result()
    return result.progress if isinstance(result, Starting) else ""


async def _too_late(provider: Provider, handle: str, timeout_s: float, last: str) -> PermanentError:
    try:
        log = await provider.logs(handle, LOG_LINES)
    except (PermanentError, TransientError):
        log = ""
    headline = f"not ready after {timeout_s:g} s" + (f": {last}" if last else "")
    what = "\n".join([headline, *(f"| {line}" for line in log.splitlines())])
    return PermanentError(
        "SS508", what, "give it more time (ready_timeout_s), or read its log for what it waits for"
    )
