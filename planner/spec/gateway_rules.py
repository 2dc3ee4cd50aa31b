"""Rules of rate limits and inference tables, in their new and old spellings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from servestate.planner.access import ANONYMOUS
from servestate.planner.spec.characters import shorten
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.gateway import GatewayRateLimit
from servestate.planner.spec.report import Report

_TABLE_NAME = re.compile(r"[A-Za-z0-9_-]{0,100}\Z")


def gateway_limits(endpoint: Endpoint, report: Report) -> None:
    """R22: a limit limits something, names its principal where it must, and is given once."""
    seen: set[tuple[str, str]] = set()
    limits = endpoint.ai_gateway.rate_limits if endpoint.ai_gateway else ()
    for index, limit in enumerate(limits):
        at = ("ai_gateway", "rate_limits", index)
        for problem, fix, field in _limit_problems(limit):
            report.error("SS122", f"rate limit {index + 1} {problem}", fix, *at, *field)
        if (limit.key, limit.principal) in seen:
            report.error(
                "SS122",
                f"rate limit {index + 1} repeats an earlier one",
                "keep one per key and principal",
                *at,
            )
        seen.add((limit.key, limit.principal))


def _limit_problems(limit: GatewayRateLimit) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What is wrong, how to mend it, and where."""
    if limit.renewal_period != "minute":
        yield 'has a renewal_period other than "minute"', "use minute", ("renewal_period",)
    if limit.calls is None and limit.tokens is None:
        yield "has neither calls nor tokens", "add one of them, or both", ()
    for field, value in (("calls", limit.calls), ("tokens", limit.tokens)):
        if value is not None and value <= 0:
            yield f"has {value} {field}", "make it more than 0", (field,)
    if limit.key in ("user_group", "service_principal") and not limit.principal:
        yield f"is for a {limit.key} and has no principal", "add principal: NAME", ()
    if limit.key == "endpoint" and limit.principal:
        yield "is for the endpoint and has a principal", "remove it, or use another key", ("principal",)


def limits_of_nobody(endpoint: Endpoint, report: Report) -> None:
    """A limit for somebody, where no tokens tell callers apart. Only of sites without any."""
    limits = endpoint.ai_gateway.rate_limits if endpoint.ai_gateway else ()
    for index, limit in enumerate(limits):
        whom = limit.key, limit.principal
        if limit.key != "endpoint" and limit.principal and whom != ("user", ANONYMOUS):
            who = f'the {limit.key} "{shorten(limit.principal)}"'
            what = f"rate limit {index + 1} is for {who} and never applies: no access tokens are declared"
            fix = "declare servestate.access.tokens: without, nobody is known by name; or use key: endpoint"
            report.warning("SS149", what, fix, "ai_gateway", "rate_limits", index, "principal")


def legacy_limits(endpoint: Endpoint, report: Report) -> None:
    """R22 for limits of the old spelling."""
    seen: set[str] = set()
    for index, limit in enumerate(endpoint.rate_limits):
        if limit.key in seen:
            what = f"rate limit {index + 1} repeats an earlier one"
            report.error("SS126", what, "keep one per key", "rate_limits", index)
        seen.add(limit.key)
        if limit.renewal_period != "minute":
            what = f'rate limit {index + 1} has a renewal_period other than "minute"'
            report.error("SS126", what, "use minute", "rate_limits", index, "renewal_period")
        if limit.calls <= 0:
            what = f"rate limit {index + 1} has {limit.calls} calls"
            report.error("SS126", what, "make it more than 0", "rate_limits", index, "calls")


def inference_table(endpoint: Endpoint, report: Report) -> None:
    """R21: an enabled inference table needs a catalog and a schema; its names are part of a file's name; and
    there is one of it."""
    gateway, config = endpoint.ai_gateway, endpoint.config
    spellings = (
        (gateway.inference_table_config if gateway else None, ("ai_gateway", "inference_table_config")),
        (config.auto_capture_config if config else None, ("config", "auto_capture_config")),
    )
    enabled = [(table, at) for table, at in spellings if table is not None and table.enabled]
    for table, at in enabled:
        if not (table.catalog_name and table.schema_name):
            what = f"{at[-1]} is enabled without a catalog and a schema"
            report.error("SS123", what, "add catalog_name and schema_name", *at)
        for field in ("catalog_name", "schema_name", "table_name_prefix"):
            if not _TABLE_NAME.match(getattr(table, field)):
                what = f"{field} of {at[-1]} holds what the name of a file should not"
                report.error("SS123", what, "use up to 100 letters, digits, - and _", *at, field)
    if len(enabled) > 1:
        what = f'"{endpoint.name}" has two inference tables: {" and ".join(at[-1] for _, at in enabled)}'
        report.error("SS123", what, "keep ai_gateway.inference_table_config", *enabled[1][1], "enabled")


def keywords(endpoint: Endpoint, report: Report) -> None:
    """An empty keyword is in every text."""
    guardrails = endpoint.ai_gateway.guardrails if endpoint.ai_gateway else None
    for side in ("input", "output") if guardrails is not None else ():
        parameters = getattr(guardrails, side)
        for index, keyword in enumerate(parameters.invalid_keywords if parameters is not None else ()):
            if not keyword.strip():
                at = ("ai_gateway", "guardrails", side, "invalid_keywords", index)
                report.error("SS220", f"a keyword of {side} guardrails is empty", "remove it", *at)


def fallback(endpoint: Endpoint, report: Report) -> None:
    """With one entity there is nothing to fall back on."""
    if endpoint.fallback and len(endpoint.entities) == 1:
        what = f'fallback of "{endpoint.name}" has no second entity to go to'
        fix = "add one, with 0 percent where it should get nothing else"
        report.warning("SS148", what, fix, "ai_gateway", "fallback_config", "enabled")
