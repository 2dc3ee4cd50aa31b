"""How long an upstream wants to be left alone, however it says so (RFC 9110, section 10.2.3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from servestate.runtime.router.http.heads import judge_answer
from servestate.runtime.router.limits import Limits

DATE = "Date: Fri, 31 Dec 1999 23:58:59 GMT\r\n"


def asked(value: str, fields: str = "") -> int:
    head = f"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n{fields}Retry-After: {value}\r\n\r\n"
    return judge_answer(head.encode("latin-1"), Limits()).retry_after


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("700", 120),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 60),
        ("Friday, 31-Dec-99 23:59:59 GMT", 60),
        ("Fri Dec 31 23:59:59 1999", 60),
        ("Fri, 31 Dec 1999 23:59:00 GMT", 1),
        ("Sat, 01 Jan 2000 23:59:59 GMT", 120),
        ("Fri, 31 Dec 1999 23:58:58 GMT", 0),
        ("-7", 0),
        ("soon", 0),
        ("Fri, 31 Dec 1999 23:59:59 +" + "9" * 20, 0),
        ("Fri, 31 Dec 99999999 23:59:59 GMT", 0),
        ("\xe9" * 2000, 0),
    ],
)
def test_a_number_or_a_date_within_bounds(value: str, seconds: int) -> None:
    assert asked(value, DATE) == seconds


@pytest.mark.parametrize("fields", ["", "Date: yesterday\r\n"])
def test_without_a_date_of_its_own_our_clock_counts(fields: str) -> None:
    then = datetime.now(UTC) + timedelta(seconds=30)
    assert 28 <= asked(format_datetime(then, usegmt=True), fields) <= 31
