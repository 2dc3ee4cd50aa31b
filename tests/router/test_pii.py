"""Personal data: what is found, what is not, and how long it takes whatever the text."""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.runtime.router.guards.pii import Detector, Effort, TooMuch
from servestate.runtime.router.guards.plain import Places, folded, plain

DETECTOR = Detector()


def seen(text: str) -> list[tuple[str, str]]:
    return [(text[one.start : one.end], one.entity) for one in DETECTOR.find(text, Effort())]


@pytest.mark.parametrize(
    ("text", "what", "entity"),
    [
        ("write to jane.doe@example.com.", "jane.doe@example.com", "EMAIL_ADDRESS"),
        ("<o'neil+news@mail.example.co.uk>", "o'neil+news@mail.example.co.uk", "EMAIL_ADDRESS"),
        ("пиши на иван@пример.рф сейчас", "иван@пример.рф", "EMAIL_ADDRESS"),
        ("请写信到user@example.cn。", "请写信到user@example.cn", "EMAIL_ADDRESS"),
        ("a@b.xn--p1ai", "a@b.xn--p1ai", "EMAIL_ADDRESS"),
        ("jo\u200bhn@exa\u00admple.com", "jo\u200bhn@exa\u00admple.com", "EMAIL_ADDRESS"),
        ("ｊｏｈｎ＠ｅｘａｍｐｌｅ．ｃｏｍ", "ｊｏｈｎ＠ｅｘａｍｐｌｅ．ｃｏｍ", "EMAIL_ADDRESS"),
        ("𝓳𝓸𝓱𝓷@example.com!", "𝓳𝓸𝓱𝓷@example.com", "EMAIL_ADDRESS"),
        ("call (415) 555-2671 now", "(415) 555-2671", "PHONE_NUMBER"),
        ("call 415-555-2671", "415-555-2671", "PHONE_NUMBER"),
        ("call 415.555.2671", "415.555.2671", "PHONE_NUMBER"),
        ("tel:+14155552671", "+14155552671", "PHONE_NUMBER"),
        ("ring +44 20 7946 0958 today", "+44 20 7946 0958", "PHONE_NUMBER"),
        ("Ruf an: +49 (30) 901820", "+49 (30) 901820", "PHONE_NUMBER"),
        ("電話 +81 3-1234-5678 まで", "+81 3-1234-5678", "PHONE_NUMBER"),
        ("هاتف ‎+٩٦٦ ٥٠ ١٢٣ ٤٥٦٧", "+٩٦٦ ٥٠ ١٢٣ ٤٥٦٧", "PHONE_NUMBER"),
        ("call 415\u2011555\u20112671", "415\u2011555\u20112671", "PHONE_NUMBER"),
        ("4111 1111 1111 1111", "4111 1111 1111 1111", "CREDIT_CARD"),
        ("card 4111-1111-1111-1111 exp 12/27", "4111-1111-1111-1111", "CREDIT_CARD"),
        ("no 12 5555555555554444.", "5555555555554444", "CREDIT_CARD"),
        ("Amex 3782 822463 10005", "3782 822463 10005", "CREDIT_CARD"),
        ("４１１１ 1111 1111 1111", "４１１１ 1111 1111 1111", "CREDIT_CARD"),
        ("4\u200b111111111111111", "4\u200b111111111111111", "CREDIT_CARD"),
        ("pay GB82 WEST 1234 5698 7654 32 and go", "GB82 WEST 1234 5698 7654 32", "IBAN_CODE"),
        ("iban:de89370400440532013000", "de89370400440532013000", "IBAN_CODE"),
        ("SSN 536-22-1234, thanks", "536-22-1234", "US_SSN"),
        ("SSN 536 22 1234", "536 22 1234", "US_SSN"),
    ],
)
def test_personal_data_is_found_where_it_stands(text: str, what: str, entity: str) -> None:
    assert seen(text) == [(what, entity)]


@pytest.mark.parametrize(
    "text",
    [
        "nothing here",
        "user@localhost and @mention and a @ b",
        "x@y, 3 @ 4.50",
        "on 2024-01-05 at 10:30:00, 05/01/2024",
        "card 4111 1111 1111 1112",  # Luhn
        "id 1234567890123456",  # no brand
        "GB83 WEST 1234 5698 7654 32",  # mod 97
        "ZZ68 1234 5678 9012 3456",  # no country
        "000-22-1234 and 666-22-1234 and 536-00-1234",  # never given out
        "1-536-22-1234",
        "078-05-1120",  # printed on a sample card
        "version 1.2.3.4, host 192.168.100.200",
        "123e4567-e89b-12d3-a456-426614174000",
        "3.14159265358979",
        "unix time 1700000000",
        "今日は天気がいいです。",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert seen(text) == []


def test_several_finds_are_apart_and_in_order() -> None:
    text = "a@b.com 4155552671 4155552672 4155552673 4155552674 536-22-1234 4111111111111111 c@d.org"
    assert [what for what, _ in seen(text)] == text.split()


@given(st.text(st.sampled_from("0123456789 -.()+@a\u200b４é/"), max_size=200))
def test_finds_never_overlap(text: str) -> None:
    found = DETECTOR.find(text, Effort())
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(one.end <= two.start for one, two in pairwise(found))


def test_the_effort_is_bounded_and_shared_by_texts() -> None:
    effort = Effort(0.0011)
    DETECTOR.find("415-555-2671 and 415-555-2672", effort)
    with pytest.raises(TooMuch):
        DETECTOR.find("415-555-2673", effort)


@pytest.mark.parametrize("piece", ["a@", "4 ", "GB82 ", "(415) 555-2671, "])
def test_a_text_of_nothing_but_candidates_is_given_up(piece: str) -> None:
    began = time.process_time()
    with pytest.raises(TooMuch):
        DETECTOR.find(piece * (4_000_000 // len(piece)), Effort())
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    "piece", ["a@", "@", "a.", "a-", "1", "1 ", "4 ", "GB82 ", "GB82WEST", "(", "a@a.", "١"]
)
def test_no_text_takes_more_than_its_length(piece: str) -> None:
    """Twice the text in at most about twice the time. Patterns that go back and forth would be far off."""

    def cost(text: str) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            DETECTOR.find(text, Effort(1e6))
            best = min(best, time.process_time() - began)
        return best

    small, large = (piece * (size // len(piece)) for size in (1500, 6000))
    assert cost(large) < 10 * cost(small) + 0.02


def test_without_the_libraries_there_is_no_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(ValueError, match=r"fix: install servestate\[pii\]"):
        Detector()


@given(st.text(max_size=30))
def test_places_lead_back_to_the_text(text: str) -> None:
    flat, places = plain(text), Places(text)
    for i in range(len(flat)):
        start, end = places.span(i, i + 1)
        assert end - start == 1
        assert flat[i] in plain(text[start])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ＢＡＤ", "bad"),
        ("b\u200ba\u00add", "bad"),
        ("STRASSE", "straße"),
        ("caf\u00e9", "CAFE\u0301"),
        ("ﬁne", "FINE"),
        ("two\u00a0\n  words", "Two words"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("b\u034fa\ufe0fd\u2060", "bad"),
        ("𝖇𝖆𝖉", "bad"),
        ("İ", "i\u0307"),
    ],
)
def test_spellings_of_the_same_text(one: str, other: str) -> None:
    assert folded(one) == folded(other)


def test_other_letters_stay_other_letters() -> None:
    distinct: list[Any] = ["bad", "bаd", "bäd", "b a d"]  # the second has a Cyrillic a
    assert len({folded(one) for one in distinct}) == 4
