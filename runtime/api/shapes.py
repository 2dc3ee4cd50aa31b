"""Shapes of bodies and answers that the planner has no models for: for the OpenAPI document, which says what
clients may send and what they get. Bodies themselves are judged by the planner, with its messages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from servestate.planner.spec.endpoint import (
    AiGateway,
    EmailNotifications,
    Endpoint,
    EndpointConfig,
    RateLimit,
    Tag,
    TelemetryConfig,
    TrafficConfig,
)


class Shape(BaseModel):
    """Base of all: further fields may come, as they do in this API."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class CreateEndpoint(Endpoint):
    """CreateServingEndpoint."""

    model_config = ConfigDict(extra="ignore")


class UpdateConfig(EndpointConfig):
    """EndpointCoreConfigInput."""

    model_config = ConfigDict(extra="ignore")


class PtEntity(Shape):
    """PtServedModel."""

    entity_name: str
    entity_version: str | int | None = None
    name: str | None = None
    provisioned_model_units: int
    burst_scaling_enabled: bool | None = None


class PtConfig(Shape):
    """The config of an endpoint of provisioned model units."""

    served_entities: list[PtEntity]
    traffic_config: TrafficConfig | None = None


class CreatePt(Shape):
    """CreatePtEndpointRequest."""

    name: str
    config: PtConfig
    ai_gateway: AiGateway | None = None
    tags: list[Tag] | None = None
    email_notifications: EmailNotifications | None = None
    budget_policy_id: str | None = None


class UpdatePt(Shape):
    """UpdateProvisionedThroughputEndpointConfigRequest."""

    config: PtConfig


class PatchTags(Shape):
    """PatchServingEndpointTags."""

    add_tags: list[Tag] | None = None
    delete_tags: list[str] | None = None


class Tags(Shape):
    """EndpointTags."""

    tags: list[Tag]


class RateLimits(Shape):
    """Rate limits of the old spelling."""

    rate_limits: list[RateLimit] | None = None


class Notifications(Shape):
    """UpdateInferenceEndpointNotifications and its answer."""

    name: str | None = None
    email_notifications: EmailNotifications | None = None


class PatchTelemetry(Shape):
    """UpdateInferenceEndpointTelemetryConfig."""

    telemetry_config: TelemetryConfig | None = None


class EndpointState(Shape):
    """Whether it serves, and whether a config is on its way."""

    ready: Literal["READY", "NOT_READY"]
    config_update: Literal["NOT_UPDATING", "IN_PROGRESS", "UPDATE_FAILED", "UPDATE_CANCELED"]


class Detailed(Shape):
    """ServingEndpointDetailed."""

    name: str
    id: str
    state: EndpointState
    creator: str
    creation_timestamp: int
    last_updated_timestamp: int
    tags: list[Tag]
    description: str
    route_optimized: bool
    permission_level: Literal["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]
    config: dict[str, Any] | None = None
    pending_config: dict[str, Any] | None = None
    task: str | None = None


class Listed(Shape):
    """ServingEndpoint, an item of the list."""

    name: str
    id: str
    state: EndpointState


class EndpointList(Shape):
    """ListEndpointsResponse. `next_page_token` where a page was asked for and more follows."""

    endpoints: list[Listed]
    next_page_token: str | None = None


class Logs(Shape):
    """The last lines of a served entity."""

    logs: str


class Optimization(Shape):
    """GetModelOptimizationInfo."""

    optimizable: bool
    model_type: str | None = None
    throughput_chunk_size: int | None = None
    model_unit_chunk_size: int | None = None


class AccessControl(Shape):
    """One line of a request to change permissions: a level and exactly one principal."""

    permission_level: Literal["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]
    user_name: str | None = None
    group_name: str | None = None
    service_principal_name: str | None = None


class ChangePermissions(Shape):
    """ServingEndpointPermissionsRequest."""

    access_control_list: list[AccessControl] | None = None


class Permissions(Shape):
    """ServingEndpointPermissions."""

    object_id: str
    object_type: str
    access_control_list: list[dict[str, Any]]


class PermissionLevels(Shape):
    """GetServingEndpointPermissionLevelsResponse."""

    permission_levels: list[dict[str, str]]


class Error(BaseModel):
    """Every refusal."""

    error_code: str
    message: str


class Empty(BaseModel):
    """Nothing to say."""
