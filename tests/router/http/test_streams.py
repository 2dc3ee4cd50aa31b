"""Chunks and event streams mean the same however the network cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.runtime.router.http.chunked import LAST, BadChunk, Decoder, encode
from servestate.runtime.router.http.sse import EventStream

LINES = st.lists(
    st.sampled_from(
        [
            "data: {}",
            "data: \u2028\u2029\x85",
            "data: \u201cq\u201d :x",
            ": ping",
            "",
            "event: x",
            ":",
            "data: [DONE]",
            "\r",
        ]
    ),
    max_size=12,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@given(st.lists(st.binary(min_size=1, max_size=5000), max_size=6), st.lists(st.integers(0, 9000), max_size=9))
def test_chunks_survive_any_cut(payloads: list[bytes], places: list[int]) -> None:
    wire = b"".join(encode(payload, last=False) for payload in payloads) + LAST
    decoder = Decoder()
    got = b"".join(decoder.feed(piece) for piece in cut(wire, places) if piece)
    assert (got, decoder.done, decoder.surplus) == (b"".join(payloads), True, b"")


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4), st.data())
def test_a_flipped_bit_of_the_framing_never_yields_more_than_was_sent(
    payloads: list[bytes], data: st.DataObject
) -> None:
    wire = bytearray(b"".join(encode(payload, last=False) for payload in payloads) + LAST)
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    decoder = Decoder()
    try:
        got = decoder.feed(bytes(wire))
    except BadChunk:
        return
    assert len(got) + len(decoder.surplus) <= len(wire)


def test_one_write_holds_payload_and_end() -> None:
    assert encode(b"abc", last=True) == b"3\r\nabc\r\n0\r\n\r\n"
    assert encode(b"", last=True) == LAST
    assert encode(b"", last=False) == b""
    assert encode(b"x" * 5000, last=False).startswith(b"1388\r\n")


@given(LINES, st.lists(st.integers(0, 200), max_size=8))
def test_events_survive_any_cut(lines: list[str], places: list[int]) -> None:
    stream = EventStream(line_bytes=1000)
    pieces = [stream.feed(piece) for piece in cut("\n".join(lines).encode(), places) if piece]
    got = (b"".join(pieces) + stream.finish()).decode()
    whole = "".join(f"{line}\n" for line in lines[:-1] if not line.startswith(":"))
    for raw in "\u2028\u2029\x85":
        whole = whole.replace(raw, f"\\u{ord(raw):04x}")
    # What the upstream left unfinished at its proper end passes as it is.
    assert got == whole + "".join(lines[-1:])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_a_line_longer_than_allowed_passes_in_pieces_with_its_characters_whole(size: int) -> None:
    stream = EventStream(line_bytes=16)
    data = ("data: " + "\u2028x\u20ac" * 30 + "\n\n").encode()
    got = b"".join(stream.feed(data[i : i + size]) for i in range(0, len(data), size))
    assert got.decode() == "data: " + "\\u2028x\u20ac" * 30 + "\n\n"


def test_an_error_stands_alone_after_what_was_said() -> None:
    for said, before in ((b"", b""), (b"data: 1\n\n", b""), (b"data: 1\n", b"\n"), (b"data: 1\r\n\r\n", b"")):
        stream = EventStream(1000)
        stream.feed(said + b"data: unfin")
        assert stream.before_error() == before
