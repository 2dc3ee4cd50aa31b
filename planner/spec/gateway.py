"""The AI gateway block, rate limits and telemetry of an endpoint (serving-API objects and names)."""

from __future__ import annotations

from typing import Literal

from servestate.planner.spec.fields import Flag, Schema, Whole


class RateLimit(Schema):
    """The legacy limit: `calls` per minute, for the endpoint or for each user."""

    calls: Whole
    renewal_period: str
    key: Literal["endpoint", "user"] = "endpoint"


class GatewayRateLimit(Schema):
    """A limit of calls or tokens per minute. `principal` narrows it to one user, group or principal."""

    renewal_period: str
    calls: Whole | None = None
    tokens: Whole | None = None
    key: Literal["endpoint", "user", "user_group", "service_principal"] = "endpoint"
    principal: str = ""


class FallbackConfig(Schema):
    """With fallback the order of the served entities is the order in which they are tried."""

    enabled: Flag


class UsageTrackingConfig(Schema):
    """One record of usage per request."""

    enabled: Flag = False


class InferenceTableConfig(Schema):
    """One row per request and reply. Enabled, it needs a catalog and a schema (R21)."""

    enabled: Flag = False
    catalog_name: str = ""
    schema_name: str = ""
    table_name_prefix: str = ""


class AutoCaptureConfig(InferenceTableConfig):
    """The legacy spelling of the inference table, inside `config`."""


class Pii(Schema):
    """What happens to personal data that a guardrail finds."""

    behavior: Literal["NONE", "BLOCK", "MASK"] = "NONE"


class GuardrailParameters(Schema):
    """The guardrails of one direction."""

    pii: Pii | None = None
    invalid_keywords: tuple[str, ...] = ()
    valid_topics: tuple[str, ...] = ()
    safety: Flag = False

    @property
    def enabled(self) -> bool:
        """Whether anything would be filtered."""
        masks = self.pii is not None and self.pii.behavior != "NONE"
        return bool(masks or self.invalid_keywords or self.valid_topics or self.safety)


class Guardrails(Schema):
    """Filters on requests (`input`) and replies (`output`)."""

    input: GuardrailParameters | None = None
    output: GuardrailParameters | None = None


class AiGateway(Schema):
    """AiGatewayConfig of the serving API."""

    rate_limits: tuple[GatewayRateLimit, ...] = ()
    fallback_config: FallbackConfig | None = None
    usage_tracking_config: UsageTrackingConfig | None = None
    inference_table_config: InferenceTableConfig | None = None
    guardrails: Guardrails | None = None


class TelemetryInferenceTable(Schema):
    """Part of TelemetryConfig."""

    name: str = ""
    sampling_fraction: float | None = None


class TelemetryTableNames(Schema):
    """Part of TelemetryConfig."""

    logs_table: str = ""
    traces_table: str = ""
    metrics_table: str = ""
    annotations_table: str = ""


class TelemetryConfig(Schema):
    """Kept and echoed; nothing is exported."""

    enabled_telemetry_features: tuple[str, ...] = ()
    inference_table_config: TelemetryInferenceTable | None = None
    table_names: TelemetryTableNames | None = None
    telemetry_profile_id: str = ""
