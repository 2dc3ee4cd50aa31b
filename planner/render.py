"""A plan as text that people, and the tools that read Terraform's output, know how to read.

The grammar is Terraform's, line for line (headers, symbols, summary); only the product's name differs.
Rendering never raises, whatever the plan holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from servestate.planner.address import EndpointAddress, EntityAddress, InstanceAddress
from servestate.planner.capacity import HostUse
from servestate.planner.change import Action, Category, Change, Reason
from servestate.planner.handles import shown
from servestate.planner.plan import Plan
from servestate.planner.plural import counted
from servestate.planner.revision import canonical_json
from servestate.planner.rollout import is_of_stray
from servestate.planner.steps import Forget, Node, PublishTable, Pull, RewriteTable, Stop

RULE = "─" * 77
NO_CHANGES = "No changes. Your infrastructure matches the configuration."

_LEGEND = (
    (Action.CREATE, "  + create"),
    (Action.UPDATE, "  ~ update in-place"),
    (Action.DELETE, "  - destroy"),
    (Action.DELETE_THEN_CREATE, "-/+ destroy and then create replacement"),
    (Action.CREATE_THEN_DELETE, "+/- create replacement and then destroy"),
)


@dataclass(frozen=True, slots=True)
class Palette:
    """ANSI sequences, or empty strings where there is no colour."""

    add: str = ""
    change: str = ""
    destroy: str = ""
    bold: str = ""
    dim: str = ""
    end: str = ""

    def of(self, glyph: str) -> str:
        """The colour of a plan symbol."""
        if "-" in glyph:
            return self.destroy
        return {"+": self.add, "~": self.change}.get(glyph, "")


PLAIN = Palette()
COLOURS = Palette("\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[1m", "\x1b[2m", "\x1b[0m")


def render_plan(plan: Plan, palette: Palette = PLAIN) -> str:
    """The whole plan, ending in a newline."""
    lines = [*_drift(plan, palette)]
    if plan.is_empty:
        lines += [f"{palette.bold}{NO_CHANGES}{palette.end}", ""]
        lines += ["servestate has compared the configuration, the state and what is running now, and found"]
        # What no apply can repair, such as a router that refuses its table, leaves a plan empty.
        lines += [
            "nothing that it could do about the differences above."
            if plan.drift
            else "no differences, so nothing needs to be done."
        ]
        return "\n".join(lines) + "\n"
    lines += _legend(plan, palette)
    lines += ["servestate will perform the following actions:", ""]
    for change in plan.changes:
        lines += [*render_change(change, palette), ""]
    lines += _housekeeping(plan)
    lines.append(f"{palette.bold}{summary(plan)}{palette.end}")
    lines += [line for line in [_second_summary(plan)] if line]
    return "\n".join(lines) + "\n"


def summary(plan: Plan) -> str:
    """`Plan: 1 to add, 0 to change, 2 to destroy.`; tools match it whole, so it carries nothing else."""
    add, change, destroy = counts(plan.changes)
    return f"Plan: {add} to add, {change} to change, {destroy} to destroy."


def counts(changes: Sequence[Change]) -> tuple[int, int, int]:
    """How many objects are added, changed and destroyed; a replacement counts as an add and a destroy."""
    actions = [change.action for change in changes]
    replaced = sum(action.replaces for action in actions)
    return (
        actions.count(Action.CREATE) + replaced,
        actions.count(Action.UPDATE),
        actions.count(Action.DELETE) + replaced,
    )


def _second_summary(plan: Plan) -> str:
    kinds = [(c, sum(change.category is c for change in plan.changes)) for c in Category]
    parts = [f"{n} {category}" for category, n in kinds if n]
    if plan.blocked:
        parts.insert(0, f"{len(plan.blocked)} blocked")
    peak = _peak(plan)
    if not parts and not peak:
        return ""
    return f"Also: {'; '.join(part for part in (', '.join(parts), peak) if part)}."


def _peak(plan: Plan) -> str:
    """How many GPUs are in use at the worst moment, host by host where there are several."""
    if not plan.capacity:
        return ""
    if len(plan.capacity) == 1:
        return f"peak {_share(plan.capacity[0])}"
    return "peak " + ", ".join(f"{_share(use)} on {use.host}" for use in plan.capacity)


def _share(use: HostUse) -> str:
    return f"{use.peak} of {counted(use.total, 'GPU')}" if use.total else counted(use.peak, "GPU")


def _drift(plan: Plan, palette: Palette) -> list[str]:
    if not plan.drift:
        return []
    lines = [f"{palette.bold}Note: Objects have changed outside of servestate{palette.end}", ""]
    lines += ["servestate found these differences between its state and what is running now:", ""]
    for drift in plan.drift:
        lines += [f"  # {drift.address} has changed", _indented(f"{drift.recorded} -> {drift.live}", 6)]
    return [*lines, "", f"{palette.dim}{RULE}{palette.end}", ""]


def _housekeeping(plan: Plan) -> list[str]:
    """What is done beside the changes, step by step: nothing is stopped unseen."""
    changed = {change.address.endpoint for change in plan.changes}
    # An update keeps what runs; what stops beside it was left by an apply that was interrupted.
    ended = {change.address for change in plan.changes if change.action is not Action.UPDATE}
    chores = [line for node in plan.nodes if (line := _chore(node, changed, ended))]
    if not chores:
        return []
    return ["  # housekeeping, no change of the configuration:", *(f"      {line}" for line in chores), ""]


def _chore(node: Node, changed: set[str], ended: set[EndpointAddress | EntityAddress]) -> str:
    """The line of a step that no change accounts for, "" for any other: `changed` endpoints tell that they
    are published, the changes of `ended` that something stops."""
    match node.step:
        case RewriteTable():
            return "the routing table is written again"
        case Pull(_, host, image, digest):
            return f"{image} is pulled to {host} ({_shortened(digest)})"
        case PublishTable(record) if record.name not in changed:
            return f"the routes of {record.name} are published again"
        case Stop(address, _, handle) if address.of not in ended or is_of_stray(node):
            return f"{address} is stopped ({shown(handle)})" if handle else f"{address} is forgotten"
        case Forget(InstanceAddress() as address) if address.of not in ended:
            return f"{address} is forgotten"
        case _:
            return ""


def _indented(text: str, columns: int) -> str:
    """`text` from that column on; further lines (the end of a log) a little deeper."""
    first, *rest = text.splitlines() or [""]
    return "\n".join([" " * columns + first, *(" " * (columns + 2) + line for line in rest)])


def _legend(plan: Plan, palette: Palette) -> list[str]:
    used = {change.action for change in plan.changes}
    lines = ["servestate used the selected providers to generate the following execution"]
    if not used:
        return [*lines, "plan.", ""]
    lines += ["plan. Resource actions are indicated with the following symbols:"]
    for action, line in _LEGEND:
        if action in used:
            glyph = action.glyph
            lines.append(line.replace(glyph, f"{palette.of(glyph)}{glyph}{palette.end}", 1))
    return [*lines, ""]


def render_change(change: Change, palette: Palette = PLAIN) -> Iterator[str]:
    """One change as a block of lines."""
    address = str(change.address)
    yield f"{palette.bold}  # {address} {_verb(change)}{palette.end}"
    yield from (_remark(line, palette) for line in _remarks(change))
    glyph = change.action.glyph
    kind = "endpoint" if isinstance(change.address, EndpointAddress) else "served_entity"
    yield f'{_mark(glyph, palette)} resource "{kind}" "{address}" {{'
    forced = {field.path for field in change.fields if field.forces}
    yield from _body(change.before, change.after, 6, palette, forced, "")
    yield "    }"


def _remark(line: str, palette: Palette) -> str:
    """A warning is what a reviewer must not miss."""
    warns = line.startswith("WARNING")
    return f"  # {palette.destroy}({line}){palette.end}" if warns else f"  # ({line})"


def _verb(change: Change) -> str:
    match change.action:
        case Action.CREATE:
            return "will be created"
        case Action.UPDATE:
            return "will be updated in-place"
        case Action.DELETE:
            return "will be destroyed"
        case _ if change.reason is Reason.TAINTED:
            return "is tainted, so must be replaced"
        case _:
            return "must be replaced"


def _remarks(change: Change) -> Iterator[str]:
    if change.reason is Reason.NOT_CONFIGURED:
        yield f"because {change.address} is not in configuration"
    if change.note:
        yield change.note
    yield from change.remarks
    if change.category is Category.RECREATE:
        yield "the old one stops before the new one starts: no answer in between"
    if change.blocked:
        yield f"blocked: {change.blocked} is set; nothing of this happens"


def _mark(glyph: str, palette: Palette) -> str:
    return f"{palette.of(glyph)}{glyph:>3}{palette.end}"


def _body(
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    indent: int,
    palette: Palette,
    forced: set[str],
    prefix: str,
) -> Iterator[str]:
    """The attributes of a block, changed ones marked, unchanged ones counted; `name` is always shown."""
    if before is None or after is None:  # what is created or destroyed: only what says something
        before, after = _telling(before), _telling(after)
    was, now = before or {}, after or {}
    keys = sorted(was.keys() | now.keys())
    hidden = [k for k in keys if was.get(k) == now.get(k) and k in was and k in now and k != "name"]
    shown = [k for k in keys if k not in hidden]
    width = max((len(k) for k in shown), default=0)
    for key in shown:
        path = f"{prefix}{key}"
        yield from _attribute(key, was, now, indent, width, palette, forced, path)
    if hidden:
        yield f"{' ' * (indent + 2)}# ({counted(len(hidden), 'unchanged attribute')} hidden)"


def _telling(attributes: dict[str, Any] | None) -> dict[str, Any] | None:
    # By identity: a share of 0 says something, and equals False.
    empty: tuple[Any, ...] = ("", [], {}, None)
    return {k: v for k, v in attributes.items() if v not in empty and v is not False} if attributes else None


def _attribute(
    key: str,
    was: dict[str, Any],
    now: dict[str, Any],
    indent: int,
    width: int,
    palette: Palette,
    forced: set[str],
    path: str,
) -> Iterator[str]:
    old, new = was.get(key), now.get(key)
    glyph = _glyph(key, was, now)
    head = f"{' ' * indent}{palette.of(glyph)}{glyph}{palette.end} {key:<{width}} = "
    note = " # forces replacement" if path in forced else ""
    present = [value for value in (old, new) if value is not None]
    if glyph != " " and present and all(isinstance(v, dict) and v for v in present):
        yield f"{head}{{{note}"
        yield from _body(old, new, indent + 4, palette, forced, f"{path}.")
        yield f"{' ' * (indent + 2)}}}"
    elif glyph == "~":
        yield f"{head}{_value(old)} -> {_value(new)}{note}"
    elif glyph == "-":
        yield f"{head}{_value(old)} -> null{note}"
    else:
        yield f"{head}{_value(new)}{note}"


def _glyph(key: str, was: dict[str, Any], now: dict[str, Any]) -> str:
    if key not in was:
        return "+"
    if key not in now:
        return "-"
    return " " if was[key] == now[key] else "~"


def _shortened(digest: str) -> str:
    return f"{digest[:19]}…"


_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, str) and _DIGEST.match(value):
        return f'"{_shortened(value)}"'
    return canonical_json(value)
