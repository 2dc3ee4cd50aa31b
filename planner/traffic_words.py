"""What becomes of an endpoint's requests, in words: the lines of a plan that people review."""

from __future__ import annotations

import json
from collections.abc import Iterator

from servestate.planner.plural import counted
from servestate.planner.policies import Policies, policies_of
from servestate.planner.table import Guard, Limit, Sticky, Traffic


def in_words(name: str, block: str, traffic: str) -> Iterator[str]:
    """A line for each policy of the endpoint `name`. `block` and `traffic` are as recorded."""
    found = policies_of(name, block, traffic)
    if found == Policies():
        return
    yield from _split(found.traffic)
    if found.traffic.fallback:
        # With fallback the normal form keeps the order in which entities are tried.
        entities = json.loads(block).get("config", {}).get("served_entities", [])
        order = ", then ".join(entity["name"] for entity in entities)
        yield f"what fails before its first content is tried elsewhere, in this order: {order}"
    if found.traffic.after_send:
        yield "WARNING: a request that is lost without an answer is sent again, so it may run twice"
    yield from _bounds(found)
    yield from _guard("requests", found.guard_input)
    yield from _guard("answers", found.guard_output)
    if found.usage:
        yield "tokens and latency of each request are recorded"
    if found.payloads is not None:
        share = "" if found.payloads.percent == 100 else f"{found.payloads.percent} % of "
        yield f"{share}requests and answers are recorded in {found.payloads.table}"


def _split(traffic: Traffic) -> Iterator[str]:
    if traffic.split == "random":
        yield "entities are drawn at random, by their shares"
    if traffic.sticky is not None:
        yield f"requests with the same {_key(traffic.sticky)} go to the same entity"
    if traffic.mirror is not None:
        mirror = traffic.mirror
        yield f"{mirror.percent} % of the requests are copied to {mirror.entity}; its answers are thrown away"


def _key(sticky: Sticky) -> str:
    what = {"header": "header", "body": "member of the body", "caller": "caller"}[sticky.source]
    return f"{what} {sticky.name}" if sticky.name else what


def _bounds(found: Policies) -> Iterator[str]:
    beyond = "; more is only counted" if found.traffic.shadow else ""
    for limit in found.limits:
        yield f"at most {_limit(limit)}{beyond}"
    if found.traffic.concurrency:
        yield f"at most {counted(found.traffic.concurrency, 'request')} at once{beyond}"


def _limit(limit: Limit) -> str:
    amounts = [counted(n, what) for n, what in ((limit.calls, "call"), (limit.tokens, "token")) if n]
    return f"{' and '.join(amounts)} a minute {_whom(limit)}"


def _whom(limit: Limit) -> str:
    if limit.key == "endpoint":
        return "in all"
    if not limit.principal:
        return f"for each {limit.key}"
    return f"for the {limit.key.replace('_', ' ')} {limit.principal}"


def _guard(what: str, guard: Guard | None) -> Iterator[str]:
    if guard is None:
        return
    if guard.pii:
        done = "refused" if guard.pii == "BLOCK" else "masked"
        yield f"personal data in {what} is {done}"
    if guard.keywords:
        yield f"{what} that hold a listed keyword are refused"
