"""The readers of requests and answers under a structure-aware mutator, with h11 as the other opinion.

What is refused is no disagreement: this router is stricter on purpose. What is accepted h11 must accept as
well, with the same method, target, body and end, or it must be one of the reviewed differences below. h11 is
itself lenient about a length beside a coding, lists of lengths and bare line feeds, so each of these is also
looked for by itself.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import h11
import pytest

from servestate.runtime.router.http import http1
from servestate.runtime.router.http.errors import Refused
from servestate.runtime.router.http.heads import BadAnswer, RequestHead
from servestate.runtime.router.http.http1 import AnswerReader, RequestReader
from servestate.runtime.router.limits import Limits
from tests.router import mutator

LIMITS = Limits()
HANG_S = 0.1
_EMPTY_LINES = re.compile(rb"\A(?:\r\n)+")
_OBS_TEXT = re.compile(rb"[\x80-\xff]")
_ODD_REASON = re.compile(rb"\AHTTP/1\.[01] [0-9]{3} [^\r\n]*[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Read:
    """What a reader made of the bytes: the first message, and what is left behind it."""

    start: tuple[object, ...]
    body: bytes
    left: bytes


T = TypeVar("T")


def timed(step: Callable[[bytes], T], piece: bytes) -> T:
    """Raises AssertionError where one piece takes longer than it ever may."""
    began = time.thread_time()
    try:
        return step(piece)
    finally:
        took = time.thread_time() - began
        assert took < HANG_S, f"{took:.3f} s for {len(piece)} bytes"


def read_request(pieces: list[bytes]) -> tuple[Read, RequestHead] | str:
    """The first request of the pieces, why it was refused, or "unfinished"."""
    reader = RequestReader(LIMITS)
    for at, piece in enumerate(pieces):
        try:
            whole = timed(reader.receive, piece)
        except Refused as refusal:
            return "refused" if refusal.close else "refused, and not closed"
        if whole:
            head = reader.head
            assert head is not None
            left = reader.surplus + b"".join(pieces[at + 1 :])
            return Read((head.method, head.target, head.http10), reader.body, left), head
    return "unfinished"


def read_answer(pieces: list[bytes]) -> Read | str:
    """The answer in the pieces, after which the upstream closes."""
    reader = AnswerReader(LIMITS)
    body, rest = b"", iter(pieces)
    for piece in rest:
        try:
            body += timed(reader.receive, piece)
        except BadAnswer:
            return "refused"
        if reader.complete:
            break
    else:
        reader.end_of_input()
    if not reader.complete or reader.head is None:
        return "unfinished"
    return Read((reader.head.status,), body, b"".join(rest))


def h11_request(data: bytes) -> Read | str:
    """What h11 makes of a client's bytes."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    found = _h11_message(connection, data, h11.Request)
    if isinstance(found, str):
        return found
    event, body = found
    start = (event.method, event.target, event.http_version == b"1.0")
    return Read(start, body, connection.trailing_data[0])


def h11_answer(data: bytes) -> Read | str:
    """What h11 makes of a server's bytes to a POST, after which the server closes."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "h"), ("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())
    found = _h11_message(connection, data, h11.Response, closes=True)
    if isinstance(found, str):
        return found
    event, body = found
    return Read((event.status_code,), body, connection.trailing_data[0])


def _h11_message(
    connection: h11.Connection, data: bytes, kind: type, closes: bool = False
) -> tuple[object, bytes] | str:
    head, body, fed = None, b"", False
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, kind):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return head, body
            elif event is h11.NEED_DATA and closes and not fed:
                connection.receive_data(b"")
                fed = True
            elif not isinstance(event, h11.InformationalResponse):
                return "unfinished"
    except h11.RemoteProtocolError as error:
        return f"refused: {error}"


def reviewed(data: bytes, theirs: Read | str) -> bool:
    """Whether h11 is known to refuse what is read here, and this router's reading is the right one, or harms
    nobody.

    - Empty lines before a request are ignored here; h11 ignores none (RFC 9112 section 2.2 asks for one).
    - Obsolete text in a reason phrase or a chunk's extension is allowed (RFC 9112 sections 4 and 7.1.1); h11
      refuses some of it.
    - Control characters in a reason phrase: h11 is right, but no reason phrase is ever passed on.
    """
    if not isinstance(theirs, str):
        return False
    return any(pattern.search(data) for pattern in (_EMPTY_LINES, _OBS_TEXT, _ODD_REASON))


def judge_request(data: bytes, pieces: list[bytes]) -> str:
    """What is wrong with how a request is read, "" if nothing is."""
    found = read_request([data])
    if _comparable(found) != _comparable(read_request(pieces)):
        return "it depends on how it is cut"
    if isinstance(found, str):
        return ""
    mine, head = found
    if not data.endswith(mine.left):
        return "bytes were lost or invented"
    wrong = _lenient(data[: len(data) - len(mine.left)])
    if wrong:
        return wrong
    for line in head.fields.split(b"\r\n"):
        if b"\n" in line or b"\r" in line or b"\0" in line:
            return "a field would split"
    theirs = h11_request(data)
    if mine != theirs and not reviewed(data, theirs):
        return f"h11 sees {theirs}, the router {mine}"
    return ""


def _comparable(found: tuple[Read, RequestHead] | str) -> object:
    return found if isinstance(found, str) else found[0]


_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding)[ \t]*:", re.IGNORECASE)


def _lenient(data: bytes) -> str:
    """What h11 would let pass: more than one framing, or a line ended by less than CRLF."""
    head = _EMPTY_LINES.sub(b"", data).partition(b"\r\n\r\n")[0]
    if len(_FRAMING.findall(head)) > 1:
        return "two framings were accepted"
    if b"\n" in head.replace(b"\r\n", b"") or b"\r" in head.replace(b"\r\n", b""):
        return "a bare line end was accepted"
    return ""


def judge_answer(data: bytes, pieces: list[bytes]) -> str:
    """What is wrong with how an answer is read, "" if nothing is."""
    mine, other = read_answer([data]), read_answer(pieces)
    # Surplus that came in a later read finds the answer whole; in the same read it is refused.
    if mine != other and not (isinstance(mine, str) and isinstance(other, Read)):
        return "it depends on how it is cut"
    if isinstance(mine, str):
        return ""
    wrong = _lenient(data)
    if wrong:
        return wrong
    theirs = h11_answer(data)
    if mine != theirs and not reviewed(data, theirs):
        return f"h11 sees {theirs}, the router {mine}"
    return ""


def fuzz(seed: int, runs: int, seconds: float) -> tuple[Counter[str], list[str]]:
    """Until so many runs or seconds; how many were read and refused, and what was wrong."""
    source = random.Random(seed)
    kinds: Counter[str] = Counter()
    wrong: list[str] = []
    end = time.monotonic() + seconds
    while kinds.total() < runs and time.monotonic() < end and len(wrong) < 5:
        data = mutator.bent(source, mutator.request(source))
        if source.random() < 0.3:
            data += bytes(mutator.request(source))
        _note(kinds, wrong, "request", data, judge_request(data, mutator.cut(source, data)), read_request)
        data = mutator.bent(source, mutator.answer(source))
        if source.random() < 0.1:
            data += bytes(mutator.answer(source))
        _note(kinds, wrong, "answer", data, judge_answer(data, mutator.cut(source, data)), read_answer)
    return kinds, wrong


def _note(
    kinds: Counter[str],
    wrong: list[str],
    what: str,
    data: bytes,
    judged: str,
    read: Callable[[list[bytes]], object],
) -> None:
    found = read([data])
    kinds[f"{what} {found if isinstance(found, str) else 'read'}"] += 1
    if judged:
        wrong.append(f"{what} {data!r}: {judged}")


def check(seed: int, runs: int, seconds: float) -> Counter[str]:
    print("seed", seed)
    kinds, wrong = fuzz(seed, runs, seconds)
    print(dict(kinds))
    assert wrong == []
    for what in ("request", "answer"):
        total = sum(count for kind, count in kinds.items() if kind.startswith(what))
        assert kinds[f"{what} read"] > 0.1 * total, "hardly anything gets behind the first check"
        assert kinds[f"{what} refused"] > 0.1 * total
    return kinds


def test_a_few_seconds_of_fuzz(seeded: random.Random) -> None:
    assert check(seeded.randrange(1 << 32), 20_000, 60).total() >= 20_000


@pytest.mark.slow
def test_a_minute_of_fuzz(seeded: random.Random) -> None:
    """A million runs in about that time; the seed differs by --seed."""
    assert check(seeded.randrange(1 << 32), 1_000_000, 60).total() >= 100_000


def test_the_check_notices_a_parser_that_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this layer's rules on framing."""
    real = http1.judge_request
    length = re.compile(rb"Content-Length: [0-9]+\r\n")

    def trusting(raw: bytes, limits: Limits) -> RequestHead:
        return real(length.sub(b"", raw) if b"chunked" in raw else raw, limits)

    monkeypatch.setattr(http1, "judge_request", trusting)
    assert any("two framings" in found for found in fuzz(1, 20_000, 20)[1])


def test_the_check_notices_bytes_that_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    real = RequestReader._take_body

    def losing(self: RequestReader, data: bytes) -> bool:
        whole = real(self, data)
        self.surplus = self.surplus[1:]
        return whole

    monkeypatch.setattr(RequestReader, "_take_body", losing)
    assert fuzz(1, 10_000, 5)[1] != []
