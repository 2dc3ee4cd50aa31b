"""Clients that ask at a set pace, each on a connection that it keeps for a while."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field

from tests.load.book import Book
from tests.load.outcome import NOTHING, Answer, Ask, Left, Outcome, judge, read_answer

CLIENTS = 64
STREAMING = 0.3
PATIENCE_S = 45.0
"""Beyond any deadline of the router's that the test sets; whoever waits longer hangs."""

_REUSE = 200
_AGAIN_S = 0.02
_LEAVE = ("sent", "head", "middle")


@dataclass(slots=True)
class Mood:
    """What the clients do at the moment. `leaving` is the share of requests whose client goes away, `orders`
    what the next requests ask the upstream to do with their answers."""

    leaving: float = 0.0
    orders: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Crowd:
    """All clients. `pace` is requests per second of all together, 0 for as many as they can; the first
    `spares` have a token of their own, `spare`; `streaming` is the share of requests for a stream."""

    host: str
    port: int
    book: Book
    token: str
    spare: str
    source: random.Random
    pace: float = 0.0
    mood: Mood = field(default_factory=Mood)
    count: int = CLIENTS
    spares: int = 1
    streaming: float = STREAMING
    _done: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Crowd:
        self._tasks = [asyncio.create_task(self._client(index)) for index in range(self.count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._done.set()
        await asyncio.gather(*self._tasks)

    async def _client(self, index: int) -> None:
        token = self.spare if index < self.spares else self.token
        loop = asyncio.get_running_loop()
        due = loop.time() + index / self.pace if self.pace else 0.0
        connection = _Connection(self.host, self.port)
        while not self._done.is_set():
            await asyncio.sleep(max(due - loop.time(), 0.0))
            if self.pace:
                due += self.count / self.pace
            number = self.book.open()
            ask = self._ask(number, token)
            outcome, answer = await connection.ask(ask)
            self.book.close(ask, outcome, answer)
            if token == self.spare:
                self.book.spare.append(number)
            if outcome is Outcome.REFUSED:
                await asyncio.sleep(_AGAIN_S)
        connection.close()

    def _ask(self, number: int, token: str) -> Ask:
        source, mood = self.source, self.mood
        streaming = source.random() < self.streaming
        order = mood.orders.pop() if mood.orders else "well"
        leave = source.choice(_LEAVE) if source.random() < mood.leaving else ""
        return Ask(number, token, streaming, order, leave)


class _Connection:
    """One client's connection, made anew whenever it has to be."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._left = 0

    async def ask(self, ask: Ask) -> tuple[Outcome, Answer]:
        """Make a request; how it ended."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._ask(ask)
        except TimeoutError:
            self.close()
            return Outcome.HUNG, NOTHING

    async def _ask(self, ask: Ask) -> tuple[Outcome, Answer]:
        try:
            reader, writer = await self._open()
        except OSError:
            return Outcome.REFUSED, NOTHING
        writer.write(ask.bytes())
        try:
            if ask.leave == "sent":
                with suppress(ConnectionError):
                    await writer.drain()
                raise Left(NOTHING)
            answer = await read_answer(reader, ask.leave)
        except Left as left:
            self.close()
            return Outcome.ABORTED, left.answer
        self._left -= 1
        if not answer.keeps or self._left <= 0:
            self.close()
        return judge(ask, answer), answer

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
            self._left = _REUSE
        return self._streams

    def close(self) -> None:
        """Go away."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None
