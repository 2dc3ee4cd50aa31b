"""The endpoint block: CreateServingEndpoint of the serving API, field for field, plus what bundles add.

Empty text, empty lists and None mean "not given" (N6). After `load()`: `served_models` has become
`served_entities` (N1), every entity has a name (R6), a single entity has its route (R11), and no field that
ends in `_plaintext` is set.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from servestate.planner.spec.external import ExternalModel
from servestate.planner.spec.fields import Flag, Schema, Version, Whole
from servestate.planner.spec.gateway import AiGateway, AutoCaptureConfig, RateLimit, TelemetryConfig

__all__ = [
    "AiGateway",
    "AutoCaptureConfig",
    "EmailNotifications",
    "Endpoint",
    "EndpointConfig",
    "ExternalModel",
    "Lifecycle",
    "Permission",
    "RateLimit",
    "Route",
    "ServedEntity",
    "ServedModel",
    "Tag",
    "TelemetryConfig",
    "TrafficConfig",
    "WorkloadSize",
    "WorkloadType",
]

WorkloadSize = Literal["Small", "Medium", "Large"]
WorkloadType = Literal[
    "CPU",
    "CPU_MEDIUM",
    "CPU_LARGE",
    "GPU_SMALL",
    "GPU_MEDIUM",
    "GPU_LARGE",
    "GPU_XLARGE",
    "GPU_XLARGE_8",
    "MULTIGPU_MEDIUM",
]


class _Served(Schema):
    """What served entities and the deprecated served models share."""

    name: str = ""
    workload_size: WorkloadSize | None = None
    workload_type: WorkloadType = "CPU"
    min_provisioned_concurrency: Whole | None = None
    max_provisioned_concurrency: Whole | None = None
    min_provisioned_throughput: Whole | None = None
    max_provisioned_throughput: Whole | None = None
    provisioned_model_units: Whole | None = None
    burst_scaling_enabled: Flag = True
    environment_vars: dict[str, str] = Field(default_factory=dict)
    instance_profile_arn: str = ""


class ServedEntity(_Served):
    """ServedEntityInput: a registered model (`entity_name`) or an external one, never both (R4)."""

    entity_name: str = ""
    entity_version: Version = ""
    external_model: ExternalModel | None = None
    scale_to_zero_enabled: Flag = False


class ServedModel(_Served):
    """ServedModelInput, the deprecated spelling. Only seen while loading."""

    model_name: str
    model_version: Version
    scale_to_zero_enabled: Flag


class Route(Schema):
    """The share of one entity. Either name may be given; if both are, they agree (R10)."""

    traffic_percentage: Whole
    served_entity_name: str = ""
    served_model_name: str = ""

    @property
    def entity(self) -> str:
        """The name of the entity that this route leads to."""
        return self.served_entity_name or self.served_model_name


class TrafficConfig(Schema):
    """Percentages that add up to 100; their order means nothing (N3)."""

    routes: tuple[Route, ...] = ()


class EndpointConfig(Schema):
    """EndpointCoreConfigInput. `name` occurs in copied samples and is ignored."""

    served_entities: tuple[ServedEntity, ...] = ()
    served_models: tuple[ServedModel, ...] = ()
    traffic_config: TrafficConfig | None = None
    auto_capture_config: AutoCaptureConfig | None = None
    name: str = ""


class Tag(Schema):
    """A label on the endpoint. Tags are a set by key (N7)."""

    key: str
    value: str = ""


class EmailNotifications(Schema):
    """Kept and echoed; no mail is sent."""

    on_update_success: tuple[str, ...] = ()
    on_update_failure: tuple[str, ...] = ()


class Permission(Schema):
    """One grant: `level` for exactly one kind of principal."""

    level: Literal["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]
    user_name: str = ""
    group_name: str = ""
    service_principal_name: str = ""


class Lifecycle(Schema):
    """`prevent_destroy` forbids plans that delete the endpoint."""

    prevent_destroy: Flag = False


class Endpoint(Schema):
    """One block under `resources.model_serving_endpoints`. Its name is its identity (R1, R15)."""

    name: str
    config: EndpointConfig | None = None
    ai_gateway: AiGateway | None = None
    tags: tuple[Tag, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    route_optimized: Flag = False
    description: str = ""
    email_notifications: EmailNotifications | None = None
    budget_policy_id: str = ""
    telemetry_config: TelemetryConfig | None = None
    permissions: tuple[Permission, ...] = ()
    lifecycle: Lifecycle | None = None

    @property
    def entities(self) -> tuple[ServedEntity, ...]:
        """The served entities in declared order; none while the endpoint has no config."""
        return self.config.served_entities if self.config else ()

    @property
    def weights(self) -> dict[str, int]:
        """Entity name -> percentage, as the routes declare it. Empty without routes."""
        traffic = self.config.traffic_config if self.config else None
        return {route.entity: route.traffic_percentage for route in traffic.routes} if traffic else {}

    @property
    def fallback(self) -> bool:
        """Whether failed requests go on to the next entity, which makes the order of entities matter."""
        gateway = self.ai_gateway
        return bool(gateway and gateway.fallback_config and gateway.fallback_config.enabled)
