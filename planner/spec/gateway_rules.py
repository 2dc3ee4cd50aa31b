"""Rules of rate limits and inference tables, in their new and old spellings."""

from __future__ import annotations

from collections.abc import Iterator

from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.gateway import GatewayRateLimit
from servestate.planner.spec.report import Report


def gateway_limits(endpoint: Endpoint, report: Report) -> None:
    """R22: a limit limits something, names its principal where it must, and is given once."""
    seen: set[tuple[str, str]] = set()
    limits = endpoint.ai_gateway.rate_limits if endpoint.ai_gateway else ()
    for index, limit in enumerate(limits):
        at = ("ai_gateway", "rate_limits", index)
        for problem, field in _limit_problems(limit):
            report.error(
                "SS122", f"rate limit {index + 1} {problem}", "see the serving API's RateLimit", *at, *field
            )
        if (limit.key, limit.principal) in seen:
            report.error(
                "SS122",
                f"rate limit {index + 1} repeats an earlier one",
                "keep one per key and principal",
                *at,
            )
        seen.add((limit.key, limit.principal))


def _limit_problems(limit: GatewayRateLimit) -> Iterator[tuple[str, tuple[str, ...]]]:
    if limit.renewal_period != "minute":
        yield 'has a renewal_period other than "minute"', ("renewal_period",)
    if limit.calls is None and limit.tokens is None:
        yield "has neither calls nor tokens", ()
    for field, value in (("calls", limit.calls), ("tokens", limit.tokens)):
        if value is not None and value <= 0:
            yield f"has {value} {field}; it must be more than 0", (field,)
    if limit.key in ("user_group", "service_principal") and not limit.principal:
        yield f"is for a {limit.key} and has no principal", ()
    if limit.key == "endpoint" and limit.principal:
        yield "is for the endpoint and has a principal", ("principal",)


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
    """R21: an enabled inference table needs a catalog and a schema."""
    gateway, config = endpoint.ai_gateway, endpoint.config
    for table, at in (
        (gateway.inference_table_config if gateway else None, ("ai_gateway", "inference_table_config")),
        (config.auto_capture_config if config else None, ("config", "auto_capture_config")),
    ):
        if table is not None and table.enabled and not (table.catalog_name and table.schema_name):
            report.error(
                "SS123",
                f"{at[-1]} is enabled without a catalog and a schema",
                "add catalog_name and schema_name",
                *at,
            )
