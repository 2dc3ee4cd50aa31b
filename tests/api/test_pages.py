"""Lists of endpoints in pages: each is in exactly one, and odd sizes are refused."""

from __future__ import annotations

import pytest

from tests.api.callers import SHARED
from tests.api.guarded import Guarded


def names(guarded: Guarded, query: str) -> tuple[list[str], str]:
    """The endpoints of that page, and the token of the next one, "" for the last."""
    answer = guarded.say("GET", query, None)
    assert answer.status == 200, answer.body
    return [one["name"] for one in answer.json["endpoints"]], answer.json.get("next_page_token", "")


@pytest.mark.parametrize("size", [1, 2, 1000, 999999999])
def test_every_endpoint_is_in_one_page(guarded: Guarded, size: int) -> None:
    every, none = names(guarded, "")
    assert (SHARED in every, len(every) > 2, none) == (True, True, "")
    found, token = names(guarded, f"?page_size={size}")
    while token:
        page, token = names(guarded, f"?page_size={size}&page_token={token}")
        found += page
    assert found == every


@pytest.mark.parametrize("size", ["0", "00", "000000000", "-1", "1.5", "x", "%20", "%D9%A1", "9" * 10])
def test_what_is_no_size(guarded: Guarded, size: str) -> None:
    answer = guarded.say("GET", f"?page_size={size}", None)
    assert (answer.status, answer.code) == (400, "INVALID_PARAMETER_VALUE"), answer.body
