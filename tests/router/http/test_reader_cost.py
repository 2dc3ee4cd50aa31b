"""What reading costs at worst: no piece that a peer may send in one read holds the loop up.

A read of the loop brings 256,000 bytes at most, so that is how much of each nastiness comes at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from servestate.runtime.router.http.errors import Refused
from servestate.runtime.router.http.heads import BadAnswer
from servestate.runtime.router.http.http1 import AnswerReader, RequestReader
from servestate.runtime.router.limits import Limits

READ_BYTES = 256_000
WORST_S = 0.1
CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def full(unit: bytes) -> bytes:
    return unit * (READ_BYTES // len(unit))


REQUESTS: dict[str, list[bytes]] = {
    "chunks of a byte": [CHUNKED, full(b"1\r\nx\r\n")],
    "chunks of a byte, extended": [CHUNKED, full(b"1;\r\nx\r\n")],
    "trailers": [CHUNKED + b"0\r\n", full(b"a:b\r\n")],
    "a trailer": [CHUNKED + b"0\r\n", full(b"a")],
    "a chunk's extension": [CHUNKED, b"1;" + full(b"a")],
    "a chunk's size": [CHUNKED, full(b"0")],
    "fields": [b"POST / HTTP/1.1\r\n" + full(b"a:b\r\n")],
    "fields, ended": [b"POST / HTTP/1.1\r\n" + full(b"a:b\r\n") + b"\r\n"],
    "a field": [b"POST / HTTP/1.1\r\na:" + full(b"b") + b"\r\n\r\n"],
    "a target": [b"GET /" + full(b"a")],
    "empty lines": [full(b"\r\n")],
    "spaces": [full(b" ")],
    "line feeds": [full(b"\n")],
    "carriage returns": [full(b"\r")],
}
ANSWERS: dict[str, list[bytes]] = {
    "chunks of a byte": [ANSWER, full(b"1\r\nx\r\n")],
    "trailers": [ANSWER + b"0\r\n", full(b"a:b\r\n")],
    "interim answers": [full(b"HTTP/1.1 103 x\r\n\r\n")],
    "fields": [b"HTTP/1.1 200 OK\r\n" + full(b"a:b\r\n")],
    "a field": [b"HTTP/1.1 200 OK\r\na:" + full(b"b") + b"\r\n\r\n"],
    "empty lines": [full(b"\r\n")],
}


def worst_of(pieces: list[bytes], receive: Callable[[bytes], object]) -> float:
    """The longest that one piece took, in seconds of this thread's own processor time."""
    worst = 0.0
    with suppress(Refused, BadAnswer):
        for piece in pieces:
            began = time.thread_time()
            try:
                receive(piece)
            finally:
                worst = max(worst, time.thread_time() - began)
    return worst


@pytest.mark.parametrize("name", REQUESTS)
def test_no_piece_of_a_request_takes_long(name: str) -> None:
    assert worst_of(REQUESTS[name], RequestReader(Limits()).receive) < WORST_S


@pytest.mark.parametrize("name", ANSWERS)
def test_no_piece_of_an_answer_takes_long(name: str) -> None:
    assert worst_of(ANSWERS[name], AnswerReader(Limits()).receive) < WORST_S


def test_a_head_in_single_bytes_takes_no_seconds() -> None:
    """Its 32 KiB cost what looking at each byte once costs, and its copies."""
    reader = RequestReader(Limits())
    head = b"POST /v1/chat/completions HTTP/1.1\r\n" + b"X-A: " + b"a" * 32_000
    began = time.thread_time()
    for at in range(len(head)):
        reader.receive(head[at : at + 1])
    assert time.thread_time() - began < 2.0


def test_a_body_in_small_pieces_takes_time_in_proportion() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000\r\n\r\n"
    took = []
    for count in (20_000, 80_000):
        reader = RequestReader(Limits())
        reader.receive(head)
        began = time.thread_time()
        for _ in range(count):
            reader.receive(b"ab")
        took.append(time.thread_time() - began)
    assert took[1] < 4 * 4 * took[0]


def test_the_check_notices_a_reader_that_copies_again_and_again() -> None:
    def copying(data: bytes) -> None:
        while data[:2] == b"\r\n":
            data = data[2:]

    assert worst_of([b"\r\n" * READ_BYTES], copying) > WORST_S
