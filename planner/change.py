"""Changes: what will be different after apply, per endpoint and served entity, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from servestate.planner.address import EndpointAddress, EntityAddress


class Action(StrEnum):
    """What happens to an object. The value is the word of the JSON output."""

    CREATE = "create"
    UPDATE = "update"
    CREATE_THEN_DELETE = "create-then-delete"
    DELETE_THEN_CREATE = "delete-then-create"
    DELETE = "delete"

    @property
    def glyph(self) -> str:
        """The symbol that Terraform's users know it by."""
        return _GLYPHS[self]

    @property
    def replaces(self) -> bool:
        """Whether it counts as one add and one destroy."""
        return self in (Action.CREATE_THEN_DELETE, Action.DELETE_THEN_CREATE)


_GLYPHS = {
    Action.CREATE: "+",
    Action.UPDATE: "~",
    Action.CREATE_THEN_DELETE: "+/-",
    Action.DELETE_THEN_CREATE: "-/+",
    Action.DELETE: "-",
}


class Category(StrEnum):
    """What a change does to what is running."""

    ROUTE_ONLY = "route-only"  # nothing restarts
    ROLLING = "rolling"  # the new one is ready before the old one loses its traffic
    RECREATE = "recreate"  # the old one stops first: a gap without an answer


class Reason(StrEnum):
    """Why, for people and machines; it explains and never decides."""

    NONE = ""
    CANNOT_UPDATE = "replace_because_cannot_update"
    TAINTED = "replace_because_tainted"
    DRIFT = "drift"
    IMAGE_MOVED = "image_digest_moved"
    RESUMED = "resumed"
    NOT_CONFIGURED = "delete_because_no_resource_config"


@dataclass(frozen=True, slots=True)
class FieldDiff:
    """One field that differs. `path` is dotted; `old` and `new` are JSON values, None where absent;
    `forces` says that this field is why the object is replaced."""

    path: str
    old: Any
    new: Any
    forces: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One object that apply changes. `before` and `after` are its attributes as JSON values, None where it
    does not exist; `note` is a line for people, `remarks` are further ones: where it goes, whether it fits,
    what it is granted; `blocked` says what forbids it, empty where nothing does."""

    address: EndpointAddress | EntityAddress
    action: Action
    reason: Reason
    category: Category
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    fields: tuple[FieldDiff, ...] = ()
    note: str = ""
    blocked: str = ""
    remarks: tuple[str, ...] = ()
