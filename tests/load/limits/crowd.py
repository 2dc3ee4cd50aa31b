"""The clients: each keeps a connection, and writes down every call it made and what it was told."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field

import orjson

from tests.load.limits.callers import ANSWER_TOKENS, Party
from tests.load.limits.site import token
from tests.load.outcome import NOTHING, Answer, read_answer

_PATIENCE_S = 30.0
_AGAIN_S = 0.02
_EARLY_S = 0.3
_PROBED_S = 3
FIELDS = tuple(
    f"x-ratelimit-{what}-{unit}".encode()
    for unit in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)


@dataclass(slots=True)
class Call:
    """A call, by the monotonic clock: it was admitted, if it was, between `began` and `ended`. `status` 0:
    there was no whole answer; `sent`: the router may have seen it all the same. `fields` are the values of
    the header lines `FIELDS`, `limit` is what a refusal names; `right`: an answer is the one to this call."""

    number: int
    caller: str
    began: float
    ended: float = 0.0
    status: int = 0
    retry_after: int = 0
    limit: str = ""
    fields: tuple[str, ...] = ()
    right: bool = True
    sent: bool = True


@dataclass(slots=True)
class Crowd:
    """All clients of all parties; the first `lead_s` seconds are the lead-in."""

    port: int
    parties: tuple[Party, ...]
    lead_s: float
    source: random.Random
    calls: list[Call] = field(default_factory=list)
    _began: float = 0.0
    _done: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Crowd:
        self._began = time.monotonic()
        for party in self.parties:
            for index in range(party.clients):
                client = self._paced(party, index) if party.pace else self._patient(party)
                self._tasks.append(asyncio.create_task(client))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._done.set()
        await asyncio.gather(*self._tasks)

    async def _paced(self, party: Party, index: int) -> None:
        """Calls at the party's pace, and never more at once to make up for time that was lost."""
        connection = _Connection(self.port, party)
        due = self._began + (index + 0.5) / (party.lead if self.lead_s else party.pace)
        while await self._until(due):
            await self._call(connection)
            now = time.monotonic()
            pace = party.lead if now < self._began + self.lead_s else party.pace
            due = max(due + party.clients / pace, now)
        connection.close()

    async def _patient(self, party: Party) -> None:
        """Who is told to wait for long asks once more shortly before that is over, every other time, and then
        right after."""
        connection = _Connection(self.port, party)
        due = self._began + (0.5 / party.lead if party.lead and self.lead_s else 0.0)
        while await self._until(due):
            call = await self._call(connection)
            if party.lead and call.ended < self._began + self.lead_s:
                due += 1 / party.lead
                continue
            due = call.ended + party.gap_s
            if call.status != 429:
                continue
            if call.retry_after >= _PROBED_S and self.source.random() < 0.5:
                if not await self._until(call.began + call.retry_after - 1 - _EARLY_S):
                    break
                again = await self._call(connection)
                call = again if again.status == 429 else call
            due = call.ended + call.retry_after
        connection.close()

    async def _call(self, connection: _Connection) -> Call:
        call = Call(len(self.calls), connection.party.name, time.monotonic())
        self.calls.append(call)
        answer = await connection.ask(call)
        call.ended = time.monotonic()
        if not answer.complete:
            await self._until(call.ended + _AGAIN_S)
            return call
        call.status = answer.status
        call.fields = tuple(answer.fields.get(name, b"").decode() for name in FIELDS)
        if answer.status == 429:
            with suppress(ValueError):
                call.retry_after = int(answer.fields.get(b"retry-after", b""))
            call.limit = orjson.loads(answer.body)["error"]["message"].rpartition(": ")[2]
        elif answer.status == 200:
            call.right = f'"{call.number:07d} '.encode() in answer.body
        return call

    async def _until(self, when: float) -> bool:
        """Wait until then; False where the run is over before."""
        # More than once: timers count whole milliseconds, and may be early by one.
        while not self._done.is_set() and (delay_s := when - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._done.wait()
        return not self._done.is_set()


class _Connection:
    """One client's, kept for as long as the router keeps it."""

    def __init__(self, port: int, party: Party) -> None:
        self.party = party
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, call: Call) -> Answer:
        """Make the call; what there is of its answer."""
        answer = NOTHING
        call.sent = False
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                if self._streams is not None and self._streams[0].at_eof():
                    self.close()
                if self._streams is None:
                    self._streams = await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = self._streams
                writer.write(self._request(call.number))
                call.sent = True
                answer = await read_answer(reader)
        if not answer.keeps:
            self.close()
        return answer

    def _request(self, number: int) -> bytes:
        message = {"role": "user", "content": f"ledger {number:07d} well now"}
        body = orjson.dumps(
            {"model": self.party.endpoint, "max_tokens": ANSWER_TOKENS, "messages": [message]}
        )
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {token(self.party)}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def close(self) -> None:
        """Go away."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None
