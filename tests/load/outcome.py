"""One request and how it ended: every one ends as exactly one `Outcome`.

| the answer                                                        | outcome   |
| ----------------------------------------------------------------- | --------- |
| 200, framing complete, our number and checksum, a stream's [DONE] | WHOLE     |
| a status of 4xx or 5xx, complete                                  | ERROR     |
| an error event without [DONE], or framing that ends short         | BROKEN    |
| the connection ended before a byte of it                          | CUT_OFF   |
| there was no connection                                           | REFUSED   |
| we left                                                           | ABORTED   |
| complete, and of another request                                  | FOREIGN   |
| complete, and not as it was sent                                  | TRUNCATED |
| none in time                                                      | HUNG      |

The last three are what must never be.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Outcome(IntEnum):
    """How a request ended; 0 while it has not."""

    WHOLE = 1
    ERROR = 2
    BROKEN = 3
    CUT_OFF = 4
    REFUSED = 5
    ABORTED = 6
    FOREIGN = 7
    TRUNCATED = 8
    HUNG = 9


NEVER = (Outcome.FOREIGN, Outcome.TRUNCATED, Outcome.HUNG)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to make. `order` is what the upstream is to do with its answer, `leave` when the client goes
    away: `sent`, `head` or `middle`; "" where it stays."""

    number: int
    token: str
    streaming: bool
    order: str = "well"
    leave: str = ""

    @property
    def message(self) -> str:
        """The message of the chat, of its own length."""
        return f"ledger {self.number} {self.order} {self._padding}"

    @property
    def _padding(self) -> str:
        return f"{self.number * 2654435761 % 2**32:08x}" * (1 + self.number % 97)

    @property
    def content(self) -> str:
        """What a whole answer says."""
        return f"{self.number} {zlib.crc32(self.message.encode()):08x} {self.message}"

    def bytes(self) -> bytes:
        """As it is sent."""
        body = json.dumps(
            {
                "model": "ledger",
                "messages": [{"role": "user", "content": self.message}],
                "stream": self.streaming,
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True, slots=True)
class Answer:
    """What came. `complete`: its framing says that nothing is missing."""

    status: int
    fields: dict[bytes, bytes]
    body: bytes
    complete: bool

    @property
    def request_id(self) -> bytes:
        """As the router named the request."""
        return self.fields.get(b"x-request-id", b"")

    @property
    def keeps(self) -> bool:
        """Whether another request may follow on the connection."""
        return self.complete and self.fields.get(b"connection", b"").lower() != b"close"


class Left(Exception):
    """We went away as we had planned to; `answer` is what had come by then."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


NOTHING = Answer(0, {}, b"", complete=False)


async def read_answer(reader: asyncio.StreamReader, leave: str = "") -> Answer:
    """The next answer, or what there is of it. Raises Left."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return NOTHING
    lines = head[:-4].split(b"\r\n")
    fields = {n.lower(): v for n, _, v in (line.partition(b": ") for line in lines[1:])}
    status = int(lines[0].split(b" ")[1])
    if leave == "head":
        raise Left(Answer(status, fields, b"", complete=False))
    body = bytearray()
    complete = True
    try:
        if fields.get(b"transfer-encoding") == b"chunked":
            await _chunks(reader, body, leave == "middle")
        else:
            await _counted(reader, body, int(fields[b"content-length"]), leave == "middle")
    except asyncio.IncompleteReadError as error:
        body += error.partial
        complete = False
    except ConnectionError:
        complete = False
    except _Middle:
        raise Left(Answer(status, fields, bytes(body), complete=False)) from None
    return Answer(status, fields, bytes(body), complete)


class _Middle(Exception):
    """Something has come."""


async def _chunks(reader: asyncio.StreamReader, body: bytearray, leave: bool) -> None:
    while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
        body += (await reader.readexactly(size + 2))[:-2]
        if leave:
            raise _Middle
    await reader.readexactly(2)


async def _counted(reader: asyncio.StreamReader, body: bytearray, length: int, leave: bool) -> None:
    body += await reader.readexactly(min(length, 1) if leave else length)
    if leave:
        raise _Middle


def judge(ask: Ask, answer: Answer) -> Outcome:
    """What the client has to think of an answer."""
    if not answer.status:
        return Outcome.CUT_OFF
    if answer.status >= 400:
        return Outcome.ERROR if answer.complete else Outcome.BROKEN
    if not answer.complete:
        return Outcome.BROKEN
    if not ask.streaming:
        return _compare(ask, _message(answer.body))
    events = [event[len(b"data: ") :] for event in answer.body.split(b"\n\n") if event.startswith(b"data: ")]
    done = bool(events) and events[-1] == b"[DONE]"
    chunks = [json.loads(event) for event in events if event != b"[DONE]"]
    if any("error" in chunk for chunk in chunks):
        return Outcome.TRUNCATED if done else Outcome.BROKEN
    said = "".join(_piece(chunk) for chunk in chunks)
    found = _compare(ask, said)
    return found if done or found is Outcome.FOREIGN else Outcome.TRUNCATED


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    except (ValueError, LookupError):
        return ""


def _piece(chunk: dict[str, Any]) -> str:
    return "".join(str(choice["delta"].get("content") or "") for choice in chunk["choices"])


def _compare(ask: Ask, said: str) -> Outcome:
    if said == ask.content:
        return Outcome.WHOLE
    number, ended, _ = said.partition(" ")
    foreign = ended and number.isdecimal() and int(number) != ask.number
    return Outcome.FOREIGN if foreign else Outcome.TRUNCATED
