"""What a router cannot do is told when it begins and when it ends, and not in between."""

from __future__ import annotations

from servestate.runtime.troubles import TROUBLES, news

LOG, TABLE = "access_log_error", "table_error"


def test_once_when_it_begins_and_once_when_it_ends() -> None:
    wrong = {LOG: "/logs/a.jsonl: Is a directory"}
    assert list(news({}, wrong)) == ["the access log cannot be written: /logs/a.jsonl: Is a directory"]
    assert list(news(wrong, wrong)) == []
    assert list(news(wrong, {})) == ["no longer: the access log cannot be written"]


def test_another_reason_is_news_and_another_trouble_is_its_own() -> None:
    before = {TABLE: "version 3: no secret"}
    told = list(news(before, {TABLE: "version 4: torn", LOG: "full"}))
    assert told == [
        "the newest routing table is not used: version 4: torn; "
        "the one before stays in use: mend that and run servestate apply",
        "the access log cannot be written: full",
    ]


def test_every_key_is_one_of_a_report() -> None:
    assert all(key.endswith("_error") for key in TROUBLES)
