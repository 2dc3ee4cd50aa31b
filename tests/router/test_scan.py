"""Bytes searched: what stands in for methods of `bytes` gives what those give, also where it is in C."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servestate.runtime.router import scan

SHORT = st.binary(max_size=6).map(lambda raw: bytes(b"ab\r\n"[byte % 4] for byte in raw))
LONG = st.binary(max_size=200).map(lambda raw: bytes(b"ab\r\n"[byte % 4] for byte in raw))
PLACES = st.integers(0, 250)
KEYS = b'"prompt_tokens":', b'"completion_tokens":'


@given(LONG, SHORT, PLACES, PLACES)
@example(b"", b"", 0, 0)
@example(b"a" * 40 + b"b", b"ab", 0, 41)  # more beginnings than are tried one by one
@example(b"ab", b"", 3, 2)
def test_it_is_found_where_bytes_find_it(data: bytes, what: bytes, start: int, end: int) -> None:
    for places in ((), (start,), (start, end)):
        assert scan.find(data, what, *places) == data.find(what, *places)
        assert scan.rfind(data, what, *places) == data.rfind(what, *places)


@given(SHORT, st.integers(0, 10**20).map(str), SHORT)
@example(b"", "", b"")
@example(b"a", "007", b"b")
@example(b"a", "-1", b"b")
@example(b"a", "1 ", b"b")
@example(b"a", "9" * scan.MOST_DIGITS, b"b")
@example(b"a", "9" * (scan.MOST_DIGITS + 1), b"b")
def test_a_number_between(before: bytes, text: str, after: bytes) -> None:
    data = before + text.encode() + after
    wanted = int(text) if text.isdigit() and len(text) <= scan.MOST_DIGITS else -1
    assert scan.number_between(data, before, after) == wanted
    assert scan.number_between(b"x" + data, before + b"-", after) == -1
    assert scan.number_between(data, before, after + b"-") == -1


def test_what_overlaps_is_not_between() -> None:
    assert scan.number_between(b"a1a", b"a1", b"1a") == -1
    assert scan.number_between(b"a", b"a", b"a") == -1


VALUES = st.one_of(
    st.integers(-5, 10**20), st.floats(allow_nan=False), st.none(), st.text(max_size=4), st.booleans()
)


@given(
    st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "total", "a}", '"']), VALUES),
    st.binary(max_size=3),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)
@example({"prompt_tokens": 7, "completion_tokens": 8}, b"", (",", ":"))
def test_numbers_of_a_flat_object(
    found: dict[str, object], before: bytes, separators: tuple[str, str]
) -> None:
    """Where they are given at all they are those that a parser finds, and none that is not a whole number."""
    data = before + json.dumps(found, separators=separators).encode() + b"}"
    numbers = scan.flat_numbers(data, len(before), *KEYS)
    if numbers is not None:
        assert numbers == (found["prompt_tokens"], found["completion_tokens"])
        assert all(type(number) is int and number >= 0 for number in numbers)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b'{"prompt_tokens":1,"completion_tokens":2',
        b'{"prompt_tokens":1}',
        b'{"prompt_tokens":1.5,"completion_tokens":2}',
        b'{"prompt_tokens":1e3,"completion_tokens":2}',
        b'{"prompt_tokens":-1,"completion_tokens":2}',
        b'{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens":3}',
        b'{"a":{"prompt_tokens":1,"completion_tokens":2}}',
        b'{"a":"\\"","prompt_tokens":1,"completion_tokens":2}',
        b'{"prompt_tokens":1234567890123456789,"completion_tokens":2}',
    ],
)
def test_what_is_not_certain_is_left_to_a_parser(text: bytes) -> None:
    assert scan.flat_numbers(text, 0, *KEYS) is None


@pytest.mark.skipif(not hasattr(scan.find, "__module__") or scan.find is bytes.find, reason="not compiled")
def test_numbers_in_c() -> None:
    text = b'xx{"prompt_tokens":12,"total_tokens":46,"completion_tokens":34,"details":null} {"a":1}'
    assert scan.flat_numbers(text, 2, *KEYS) == (12, 34)
    for wrong in (lambda: scan.find("a", b"a"), lambda: scan.find(b"a"), lambda: scan.rfind(b"a", "a")):  # type: ignore[arg-type,call-arg]
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(ValueError, match="not below 0"):
        scan.find(b"a", b"a", -1)
    with pytest.raises(TypeError):
        scan.number_between(b"a", b"a", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        scan.flat_numbers(b"a", b"a", *KEYS)  # type: ignore[arg-type]


JSONISH = st.lists(st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b"a", b",", b"\n", b"\xff"])).map(
    b"".join
)


def go_on(data: bytes, at: int, depth: int, quoted: int) -> tuple[int, int, int]:
    """As `nested` says it, byte by byte."""
    while at < len(data) and (quoted or depth > 1):
        byte = data[at : at + 1]
        at += 1
        if quoted == 2:
            quoted = 1
        elif quoted:
            quoted = {b'"': 0, b"\\": 2}.get(byte, 1)
        elif byte == b'"':
            quoted = 1
        else:
            depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(byte, 0)
    return at, depth, quoted


@given(JSONISH, st.integers(0, 30), st.integers(1, 3), st.integers(0, 2))
@example(b"", 0, 2, 2)
@example(b"\\", 0, 2, 1)
def test_what_is_nested_ends_where_its_brackets_do(data: bytes, at: int, depth: int, quoted: int) -> None:
    at = min(at, len(data))
    wanted = go_on(data, at, depth, quoted)
    assert scan.nested(data, at, depth, quoted) == wanted
    assert scan._nested(data, at, depth, quoted) == wanted


@pytest.mark.parametrize("nested", [scan.nested, scan._nested])
def test_nobody_goes_deeper_than_that(nested: Callable[..., tuple[int, int, int]]) -> None:
    deep = b"[" * 5000
    assert nested(deep, 0, 1, 0) == (0, 1, 0)
    assert nested(deep, 0, 2, 0) == (scan.MOST_DEPTH - 1, scan.MOST_DEPTH + 1, 0)
    assert nested(b"[]" * 5000 + b"]", 0, 2, 0) == (10_001, 1, 0)
