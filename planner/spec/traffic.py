"""How an endpoint's requests find their way (`servestate.traffic.<endpoint>`), beyond what the serving API
has words for. The weights, fallback, limits and guardrails themselves stand in the endpoint's block."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from servestate.planner.spec.fields import WANTED, Bytes, Flag, Schema, Seconds, Whole

_SOURCE = re.compile(r"caller|header:[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}|body:[A-Za-z0-9_-]{1,100}")


def _source(value: Any) -> str:
    if isinstance(value, str) and _SOURCE.fullmatch(value):
        return value
    raise PydanticCustomError(WANTED, 'caller, "header:NAME" or "body:MEMBER"')


class StickySplit(Schema):
    """Requests with the same key go to the same entity: `from` is a request header, a member of the request's
    body, or who calls. Another `salt` deals all keys anew."""

    # `from` is a word of Python; in YAML, and in whatever a site is handed on as, it stays what it is.
    model_config = ConfigDict(serialize_by_alias=True)

    source: Annotated[str, BeforeValidator(_source)] = Field(alias="from")
    salt: str = ""


class FallbackPolicy(Schema):
    """`after_send` says that a request may run twice: one that was sent and lost without a status is tried
    elsewhere too."""

    after_send: Flag = False


class MirrorPolicy(Schema):
    """Copies of `percent` of the requests go to `entity` too, at most `max_inflight` at once; their answers
    are thrown away. An external entity costs money, so it wants `allow_external`."""

    entity: str
    percent: Whole = Field(ge=1, le=100)
    max_inflight: Whole = Field(default=8, ge=1, le=10_000)
    allow_external: Flag = False


class InferenceTablePolicy(Schema):
    """How the inference table that the endpoint's block asks for is kept here: `percent` of the requests,
    each body up to `max_body_bytes`."""

    format: Literal["jsonl", "parquet"] = "jsonl"
    percent: Whole = Field(default=100, ge=1, le=100)
    max_body_bytes: Bytes = Field(default=2**20, ge=1, le=2**30)


class TrafficPolicy(Schema):
    """One endpoint's. `deadline_s` is for all attempts at a request up to its first content, `stall_s`
    between two pieces of an answer; 0 = the router's own. `concurrency` bounds the requests in flight (0 =
    not). `limits: shadow` counts what limits would refuse, and lets it pass. `entity_header` lets callers
    choose the entity by the request header `x-servestate-entity`."""

    split: Literal["exact", "random", "sticky"] = "exact"
    sticky: StickySplit | None = None
    replicas: Literal["least_request", "prefix_hash"] = "least_request"
    fallback: FallbackPolicy = FallbackPolicy()
    deadline_s: Seconds = Field(default=0.0, le=86_400)
    stall_s: Seconds = Field(default=0.0, le=86_400)
    concurrency: Whole = Field(default=0, ge=0, le=1_000_000)
    limits: Literal["enforce", "shadow"] = "enforce"
    entity_header: Flag = False
    mirror: MirrorPolicy | None = None
    inference_table: InferenceTablePolicy = InferenceTablePolicy()
