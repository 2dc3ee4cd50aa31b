"""A YAML mapping -> its pydantic model, with pydantic's errors in the words of its author."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from servestate.planner.spec.characters import shorten
from servestate.planner.spec.fields import WANTED, bound_like
from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import Block, Items, Path, dotted, mark_of, value_at
from servestate.planner.spec.suggest import did_you_mean

_M = TypeVar("_M", bound=BaseModel)

# Values under such keys are never shown: a message ends up in logs and reviews.
_SECRET = re.compile(
    r"plaintext|secret(?!s\Z)|token|passw|credential|api_key|access_key|private_key|auth"
    r"|\Aenvironment_vars\Z|\Aenv\Z"
)
_LISTABLE = 2000
_TEXT_MAPS = frozenset({"environment_vars", "env"})

_ANSWERED = frozenset(
    {
        "id",
        "state",
        "creator",
        "creation_timestamp",
        "last_updated_timestamp",
        "pending_config",
        "config_version",
        "permission_level",
        "endpoint_url",
        "endpoint_type",
        "data_plane_info",
        "foundation_model",
    }
)
"""Fields that only replies of the serving API have. They arrive in YAML by copying a reply."""

_SITE_ONLY = frozenset(
    {"image", "args", "argv", "command", "engine", "source", "port", "ports", "gpus", "provider"}
)

_RIGHTS = frozenset(
    {
        *("privileged", "pid", "pid_mode", "ipc", "ipc_mode", "uts", "userns", "userns_mode", "network_mode"),
        *("cap_add", "capabilities", "devices", "device_cgroup_rules", "security_opt", "sysctls"),
        *("group_add", "cgroup_parent", "runtime", "volumes", "volumes_from", "binds", "ports", "links"),
        *("extra_hosts", "restart", "restart_policy"),
    }
)
"""Keys by which other tools give a container rights. Here no container gets any, so none can be asked for."""

_EXPECTED = {
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "float_type": "a number",
    "float_parsing": "a number",
}
_BOUNDS = {"greater_than_equal": ("ge", "or more"), "less_than_equal": ("le", "or less")}


def validate(kind: type[_M], block: Block, path: Path, findings: Findings) -> _M | None:
    """`block`, which stands at `path`, as a `kind`. None if it is not one, with all that is wrong found."""
    try:
        return kind.model_validate(block)
    except ValidationError as error:
        if error.error_count() > _LISTABLE:
            what = f"{dotted(path)} has {error.error_count():,} mistakes, too many to list"
            findings.error("SS161", what, "check that it is what its key says", block.marks[0], path)
            return None
        details = error.errors(include_url=False)
    if any(detail["input"] is None for detail in details):
        # A key without a value means "not given" (N6). Rare, so the common case does not pay for it.
        try:
            return kind.model_validate(_without_nulls(block))
        except ValidationError as error:
            details = error.errors(include_url=False)
    for detail in details:
        _report(kind, block, path, detail, findings)
    return None


def _without_nulls(value: Any, key: str = "") -> Any:
    if isinstance(value, Block):
        kept = Block.at(value.marks[0])
        for name, below, marks in value.entries():
            if below is not None or key in _TEXT_MAPS:
                kept.add(name, _without_nulls(below, name), marks)
        return kept
    if isinstance(value, Items):
        items = Items.at(value.marks[0])
        for below, mark in value.entries():
            items.add(_without_nulls(below), mark)
        return items
    return value


def _report(
    kind: type[BaseModel], block: Block, path: Path, detail: ErrorDetails, findings: Findings
) -> None:
    inner = detail["loc"]
    if detail["type"] == "extra_forbidden":
        _unknown_key(kind, block, path, inner, findings)
    elif detail["type"] == "missing":
        _missing(block, path, inner, findings)
    elif inner[-1:] == ("[key]",):
        mark = mark_of(block, inner[:-1], key=True)
        what = f'"{shorten(str(inner[-2]))}" is not a key of {dotted((*path, *inner[:-2]))}'
        findings.error("SS160", what, f"use {detail['msg']}", mark, (*path, *inner[:-1]))
    else:
        _wrong_value(block, path, detail, findings)


def _missing(block: Block, path: Path, inner: Path, findings: Findings) -> None:
    parent, key = value_at(block, inner[:-1]), str(inner[-1])
    what, fix = f'the key "{key}" is missing in {dotted((*path, *inner[:-1]))}', f'add "{key}"'
    if isinstance(parent, Block) and key in parent:
        what, fix = f"{dotted((*path, *inner))} has no value", "write one"
    findings.error("SS162", what, fix, mark_of(block, inner), (*path, *inner))


def _unknown_key(kind: type[BaseModel], block: Block, path: Path, inner: Path, findings: Findings) -> None:
    key, parent = str(inner[-1]), _model_at(kind, inner[:-1])
    if key in _RIGHTS and inner[-2:-1] == ("container",):
        what, fix = f"containers never get {key}", "remove it; files of the host are given by mounts"
        mark = mark_of(block, inner, key=True)
        findings.error("SS192", what, fix, mark, (*path, *inner))
        return
    fields = parent.model_fields.items() if parent else ()
    known = [field.alias or name for name, field in fields if not name.endswith("_plaintext")]
    what = f'the key "{shorten(key)}" is not known in {dotted((*path, *inner[:-1]))}'
    findings.error(
        "SS160", what, _unknown_key_fix(key, known), mark_of(block, inner, key=True), (*path, *inner)
    )


def _unknown_key_fix(key: str, known: list[str]) -> str:
    suggestion = did_you_mean(key, known)
    if suggestion:
        return f"correct or remove it{suggestion}"
    if key in _ANSWERED:
        return "remove it: the serving API only answers with it"
    if key in _SITE_ONLY:
        return "move it to servestate.models or servestate.overrides: the endpoint block has no word for it"
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"remove it, or use one of {shown}"


def _model_at(kind: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model that stands at `path` in a `kind`."""
    model: type[BaseModel] | None = kind
    for part in path:
        if model is not None and isinstance(part, str) and part in model.model_fields:
            model = model_in(model.model_fields[part].annotation)
    return model


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside `X | None`, `tuple[X, …]` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := model_in(arg))), None)


def _wrong_value(block: Block, path: Path, detail: ErrorDetails, findings: Findings) -> None:
    inner = detail["loc"]
    # What a bound is compared with has no unit any more; people read what they wrote.
    written = value_at(block, inner) if detail["type"] in _BOUNDS else detail["input"]
    expected = _expected(detail, written)
    found = _kind(written) if _hidden(inner) else _shown(written)
    what = f"{dotted((*path, *inner))} must be {expected}, found {found}"
    findings.error("SS161", what, _value_fix(expected, written), mark_of(block, inner), (*path, *inner))


def _expected(detail: ErrorDetails, written: Any) -> str:
    if detail["type"] == WANTED:
        return detail["msg"]
    if detail["type"] in ("literal_error", "enum"):
        return f"one of {detail['ctx']['expected']}".replace(" or ", ", ").replace("'", "")
    if detail["type"] in _BOUNDS:
        name, words = _BOUNDS[detail["type"]]
        return f"{bound_like(written, detail['ctx'][name])} {words}"
    message = detail["msg"].removeprefix("Input should be ")
    return _EXPECTED.get(detail["type"], message)


def _value_fix(expected: str, value: Any) -> str:
    if expected == "text" and isinstance(value, (int, float)):
        return "put the value in quotes"
    if expected == "a list" and not isinstance(value, Items):
        return 'start each item on a line of its own with "- "'
    return f"write {expected}"


def _hidden(path: Path) -> bool:
    """Whether a value at `path` may be a secret: inside an external model any misplaced one may be."""
    names = [part for part in path if isinstance(part, str)]
    return any(map(_SECRET.search, names)) or ("external_model" in names and names[-1] != "provider")


def _kind(value: Any) -> str:
    if value is None or isinstance(value, (Mapping, list, bool)):
        return _shown(value)
    return "text" if isinstance(value, str) else "a number"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    return f'the text "{shorten(value)}"' if isinstance(value, str) else f"the number {value}"
