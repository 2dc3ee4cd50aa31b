"""The ledger's own judgement: what it must notice, it notices."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.load.book import Book, Line
from tests.load.faults import KINDS, Happened, plan
from tests.load.judgement import Evidence, findings
from tests.load.outcome import NOTHING, Answer, Ask, Left, Outcome, judge, read_answer
from tests.load.place import Scrape

ASKED = 1000


def whole(ask: Ask) -> Answer:
    """An answer as it should be."""
    choice = {"message": {"content": ask.content}}
    return answer(ask, json.dumps({"choices": [choice]}).encode())


def stream(ask: Ask, *, done: bool = True, said: str = "") -> Answer:
    """The same in pieces."""
    said = said or ask.content
    halves = said[: len(said) // 2], said[len(said) // 2 :]
    events = [{"choices": [{"delta": {"content": half}}]} for half in halves]
    data = [json.dumps(event).encode() for event in events] + [b"[DONE]"] * done
    return answer(ask, b"".join(b"data: %b\n\n" % one for one in data))


def answer(ask: Ask, body: bytes, status: int = 200, *, complete: bool = True) -> Answer:
    return Answer(status, {b"x-request-id": b"r-%d" % ask.number}, body, complete)


def test_a_whole_answer_is_whole() -> None:
    assert judge(Ask(7, "t", False), whole(Ask(7, "t", False))) is Outcome.WHOLE
    assert judge(Ask(7, "t", True), stream(Ask(7, "t", True))) is Outcome.WHOLE


def test_the_answer_to_another_request_is_foreign() -> None:
    assert judge(Ask(7, "t", False), whole(Ask(8, "t", False))) is Outcome.FOREIGN
    assert judge(Ask(7, "t", True), stream(Ask(8, "t", True))) is Outcome.FOREIGN


def test_what_is_complete_by_its_framing_only_is_truncated() -> None:
    ask = Ask(712, "t", True)
    assert judge(ask, stream(ask, done=False)) is Outcome.TRUNCATED
    assert judge(ask, stream(ask, said=ask.content[:-1])) is Outcome.TRUNCATED
    assert judge(ask, stream(ask, said="71")) is Outcome.TRUNCATED
    plain = Ask(712, "t", False)
    body = whole(plain).body
    assert judge(plain, answer(plain, body[: len(body) // 2])) is Outcome.TRUNCATED
    changed = body.replace(b"712 ", b"713 ", 1).replace(b"ledger", b"Ledger")
    assert judge(plain, answer(plain, changed)) is not Outcome.WHOLE


def test_what_says_that_it_failed_is_an_error_or_broken() -> None:
    ask = Ask(7, "t", True)
    error = b'data: {"error":{"message":"lost"}}\n\n'
    assert judge(ask, answer(ask, b"{}", 503)) is Outcome.ERROR
    assert judge(ask, answer(ask, error, complete=False)) is Outcome.BROKEN
    assert judge(ask, answer(ask, error)) is Outcome.BROKEN
    assert judge(ask, answer(ask, error + b"data: [DONE]\n\n")) is Outcome.TRUNCATED
    assert judge(ask, answer(ask, stream(ask).body, complete=False)) is Outcome.BROKEN
    assert judge(ask, NOTHING) is Outcome.CUT_OFF


@pytest.mark.parametrize(
    ("sent", "complete", "body"),
    [
        (b"Content-Length: 4\r\n\r\nwhol", True, b"whol"),
        (b"Content-Length: 4\r\n\r\nsho", False, b"sho"),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\nwhol\r\n0\r\n\r\n", True, b"whol"),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\nwhol\r\n", False, b"whol"),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\nwhol\r\n0\r\n", False, b"whol"),
    ],
)
def test_the_framing_says_whether_an_answer_is_complete(sent: bytes, complete: bool, body: bytes) -> None:
    async def read(leave: str = "") -> Answer:
        reader = asyncio.StreamReader()
        reader.feed_data(b"HTTP/1.1 200 OK\r\nx-request-id: r\r\n" + sent)
        reader.feed_eof()
        return await read_answer(reader, leave)

    found = asyncio.run(read())
    assert (found.complete, found.body, found.request_id) == (complete, body, b"r")
    for leave in ("head", "middle"):
        with pytest.raises(Left):
            asyncio.run(read(leave))


# A run in which all is well, and what may be wrong with it.


def evidence(change: Callable[[Book, Counter[int]], None] | None = None, **more: Any) -> Evidence:
    """A thousand requests, one after the other, and a fault of each kind after the hundredth second."""
    book = Book()
    executed: Counter[int] = Counter()
    for number in range(ASKED):
        book.open()
        book.began[number], book.ended[number] = float(number), number + 0.1
        book.outcomes[number], book.statuses[number] = Outcome.WHOLE, 200
        executed[number] += 1
        book.lines += 1
    if change is not None:
        change(book, executed)
    given = {
        "scrapes": [Scrape(2000.0, book.lines, 0)],
        "happened": [Happened("upstream killed", 100.0, 100.0), Happened("split changed", 300.0, 301.0)],
        "revoked": [],
    }
    return Evidence(book, executed, **{**given, **more})


def ends(number: int, outcome: Outcome, status: int = 0, *, ran: bool = False) -> Any:
    """That request ended otherwise."""

    def change(book: Book, executed: Counter[int]) -> None:
        book.outcomes[number], book.statuses[number] = outcome, status
        if not ran:
            del executed[number]

    return change


def twice(book: Book, executed: Counter[int]) -> None:
    executed[500] += 1


def never_ran(book: Book, executed: Counter[int]) -> None:
    del executed[500]


def strange(book: Book, executed: Counter[int]) -> None:
    executed[ASKED] += 1


def unwritten(book: Book, executed: Counter[int]) -> None:
    book.lines -= 1
    book.unlogged[b"r-500"] = 500


def written_too_often(book: Book, executed: Counter[int]) -> None:
    book.logged(b"nobody's", Line(200, gone=False, cut=False))


def otherwise(book: Book, executed: Counter[int]) -> None:
    book.lines -= 1
    book.unlogged[b"r-500"] = 500
    book.logged(b"r-500", Line(502, gone=False, cut=False))


def cut(book: Book, executed: Counter[int]) -> None:
    book.lines -= 1
    book.unlogged[b"r-500"] = 500
    book.logged(b"r-500", Line(200, gone=False, cut=True))


def test_a_good_run_passes() -> None:
    assert findings(evidence()) == []
    assert findings(evidence(ends(101, Outcome.ERROR, 504, ran=True))) == []
    assert findings(evidence(ends(101, Outcome.ERROR, 503))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (ends(101, Outcome.FOREIGN, 200, ran=True), "ended as FOREIGN"),
        (ends(101, Outcome.TRUNCATED, 200, ran=True), "ended as TRUNCATED"),
        (ends(101, Outcome.HUNG, 0), "ended as HUNG"),
        (ends(101, Outcome.CUT_OFF, 0), "no worker had died"),
        (ends(101, Outcome.ERROR, 503, ran=True), "told to repeat them"),
        (ends(101, Outcome.REFUSED, 0, ran=True), "without a connection"),
        (ends(500, Outcome.ERROR, 503), "more than 5 s from any fault"),
        (ends(302, Outcome.ERROR, 503), "no harmful fault explains"),
        (lambda book, executed: book.open(), "without an outcome"),
        (twice, "1 requests executed twice: [500]"),
        (never_ran, "never executed"),
        (strange, "nobody made"),
        (unwritten, "answers without a line in the access log, which dropped 0: [500]"),
        (written_too_often, "1 lines of the access log for 0 requests without a name"),
        (otherwise, "WHOLE 200, and the access log says Line(status=502"),
        (cut, "WHOLE 200, and the access log says Line(status=200, gone=False, cut=True"),
    ],
)
def test_what_is_wrong_is_found(change: Any, said: str) -> None:
    assert any(said in finding for finding in findings(evidence(change)))


def test_the_share_of_requests_that_go_well_is_kept() -> None:
    def change(book: Book, executed: Counter[int]) -> None:
        for number in range(100, 106):
            ends(number, Outcome.ERROR, 503)(book, executed)

    assert findings(evidence(change)) == ["only 99.4000% of the requests went well"]


def test_the_metrics_have_to_agree() -> None:
    for counted in (ASKED - 1, ASKED + 1):
        (found,) = findings(evidence(scrapes=[Scrape(2000.0, counted, 0)]))
        assert f"the metrics say {counted} requests, the access log {ASKED}" in found


def test_a_replaced_router_takes_its_last_counts_along_and_no_others() -> None:
    replaced = [Happened("router replaced", 500.0, 510.0)]
    scrapes = [Scrape(499.5, 500, 0), Scrape(505.0, 2, 0), Scrape(2000.0, 490, 0)]
    assert findings(evidence(happened=replaced, scrapes=scrapes)) == []
    scrapes[-1] = Scrape(2000.0, 480, 0)
    assert "metrics say 980" in findings(evidence(happened=replaced, scrapes=scrapes))[0]


def test_a_dropped_line_is_one_that_the_log_knows_of() -> None:
    said = [Scrape(2000.0, ASKED, 1)]
    assert findings(evidence(unwritten, scrapes=said)) == []


def test_a_killed_worker_takes_its_last_lines_along() -> None:
    killed = [Happened("worker killed", 500.3, 500.3)]
    assert findings(evidence(unwritten, happened=killed)) == []
    assert findings(evidence(unwritten, happened=[Happened("worker killed", 502.0, 502.0)]))


def test_a_revoked_token_lets_nobody_in() -> None:
    def change(book: Book, executed: Counter[int]) -> None:
        book.spare.append(500)

    assert findings(evidence(change, revoked=[(400.0, 450.0)])) == []
    (found,) = findings(evidence(change, revoked=[(499.0, 502.0)]))
    assert "after it was revoked: [500]" in found


def test_a_request_ends_once() -> None:
    book = Book()
    ask = Ask(book.open(), "t", False)
    book.close(ask, Outcome.WHOLE, whole(ask))
    with pytest.raises(ValueError, match="ended twice"):
        book.close(ask, Outcome.ERROR, NOTHING)


def test_to_be_put_off_without_a_time_is_found() -> None:
    book = Book()
    for fields in ({b"retry-after": b"1"}, {}):
        ask = Ask(book.open(), "t", False)
        book.close(ask, Outcome.ERROR, Answer(503, fields, b"{}", complete=True))
    assert book.unpaced == [1]
    assert any("without a Retry-After: [1]" in f for f in findings(Evidence(book, Counter(), [], [], [])))


def test_two_answers_of_one_name_are_noticed() -> None:
    book = Book()
    for _ in range(2):
        book.close(Ask(book.open(), "t", False), Outcome.WHOLE, whole(Ask(0, "t", False)))
    assert "two answers have the name" in book.mismatched[0]


def test_the_plan_is_the_seeds_and_has_every_kind_in_each_round() -> None:
    made = plan(1800, 11, seed=7)
    assert made == plan(1800, 11, seed=7)
    assert made != plan(1800, 11, seed=8)
    assert Counter(one.kind for one in made) == Counter(dict.fromkeys(KINDS, 11))
    assert len(made) >= 150
    assert (made[0].at >= 8, made[-1].at < 1790) == (True, True)
