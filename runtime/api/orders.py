"""What clients that are elsewhere send, and the shapes of what they are answered."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from servestate.runtime.api.call import Call, invalid
from servestate.runtime.api.shapes import Shape

_LONGEST_URL = 500

M = TypeVar("M", bound=BaseModel)


class _Form(BaseModel):
    """What a client of this version sends. What it would have dropped, it does not act on."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DocumentText(_Form):
    """One document of a configuration; findings call it by its name."""

    name: str
    text: str


class Configuration(_Form):
    """A bundle as its client sees it. `environ` is searched for BUNDLE_VAR_<name>."""

    documents: tuple[DocumentText, ...] = ()
    target: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    environ: dict[str, str] = Field(default_factory=dict)


class PlanOrder(Configuration):
    """Wanted: a plan. `wait_s` is how long to wait for a lock that somebody holds, in seconds."""

    destroy: bool = False
    pull: Literal["never", "missing", "always"] | None = None
    wait_s: float = 0.0


class ApplyOrder(_Form):
    """Wanted: a plan that was made here carried out; `plan` is packed, see `wire.pack`. `configuration` is
    compared with what it was made from, where it is given. `settled` says that there is nothing to do, and
    asks only whether the router routes by the table. `ci_url` is the page of the job that asks."""

    plan: str
    configuration: Configuration | None = None
    settled: bool = False
    lock_timeout_s: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    ci_url: str = Field(default="", max_length=_LONGEST_URL)


class PlanMade(Shape):
    """A plan, its warnings and whose it is; or who holds the lock."""

    plan: str | None = None
    settled: bool | None = None
    owner: str | None = None
    warnings: list[dict[str, Any]] | None = None
    locked: dict[str, Any] | None = None


class Begun(Shape):
    """Where to ask for the progress of an apply."""

    operation: str


class News(Shape):
    """What has happened since the event that was asked after; `result` once that is all."""

    events: list[dict[str, Any]]
    result: dict[str, Any] | None


class Status(Shape):
    """What `servestate status --json` prints."""

    serial: int
    endpoints: list[dict[str, Any]]


def read(kind: type[M], call: Call) -> M:
    """The body as that form. Raises Refusal."""
    try:
        return kind.model_validate(call.object())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise invalid(
            f"the client is of another version, or no servestate: {place}: {first['msg']}"
        ) from None
