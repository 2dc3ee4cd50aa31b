"""The reports and metrics of several workers as one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from servestate.runtime.router.records.families import FAMILIES, Snapshot
from servestate.runtime.router.records.metrics import merge

Report = dict[str, Any]

_ERRORS = ("access_error", "tls_error", "table_error", "table_copy_error")
_WHOSE = ("endpoint", "entity", "requester", "estimated")
"""Whose tokens a sum of them is."""
_LOWEST = frozenset({"config_version"})
_ALIKE = frozenset({"weight", "bounds", *_WHOSE})
"""What is no number of anything, so that it is not summed."""
_RUNNING = frozenset({"inflight"})
_STATES = ("healthy", "trial", "ejected")
"""Of a replica, from best to worst."""
_SINCE_WEIGHTS_CHANGED = "servestate_split_assigned_total"
"""What begins anew with new weights: of a process that is gone nobody knows whether it had."""


NOTHING: Report = {
    **dict.fromkeys(_ERRORS),
    "access": None,
    "table_version": None,
    "connections": 0,
    "endpoints": {},
    "replicas": {},
}
"""What is reported where nothing is routed: there is no version of the table that is in use."""


def merged(reports: Sequence[Report], past: Iterable[Report] = ()) -> Report:
    """One report for all: counts are summed, the version is the lowest that one of them still routes by, an
    error that of the first that has one. `past` are settled reports of processes that are gone."""
    if not reports:
        return NOTHING
    endpoints: dict[str, Any] = {}
    for report in reports:
        endpoints = _together(endpoints, report["endpoints"])
    for report in past:
        endpoints = _together(endpoints, _still_there(report.get("endpoints", {}), endpoints))
    return {
        **reports[0],
        **{key: next((r[key] for r in reports if r[key]), None) for key in _ERRORS},
        "table_version": min(report["table_version"] for report in reports),
        "connections": sum(report["connections"] for report in reports),
        "endpoints": endpoints,
        "replicas": all_replicas(report["replicas"] for report in reports),
        "books": _books([report["books"] for report in reports]),
    }


def _books(reports: Sequence[Report]) -> Report:
    """Sums of what was dropped and of what each caller used; an error that of the first that has one."""
    used: dict[tuple[Any, ...], dict[str, Any]] = {}
    dropped: dict[str, int] = {}
    for report in reports:
        for row in report["usage"]:
            whose = tuple(row[key] for key in _WHOSE)
            used[whose] = _together(used[whose], row) if whose in used else row
        dropped = _together(dropped, report["dropped"])
    errors = {
        key: next((r[key] for r in reports if r[key]), None) for key in reports[0] if key.endswith("_error")
    }
    return {**errors, "dropped": dropped, "usage": list(used.values())}


def all_replicas(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Requests running on each replica by whichever worker; its health as the worker sees it that has the
    worst to tell."""
    found: dict[str, Any] = {}
    for report in reports:
        for name, replica in report.items():
            found[name] = _replica(found[name], replica) if name in found else replica
    return found


def _replica(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    worst = max(one, other, key=lambda replica: _STATES.index(replica.get("state", _STATES[0])))
    return {**worst, "inflight": one["inflight"] + other["inflight"]}


def with_predecessor(report: Report, predecessor: Report) -> Report:
    """The report of a router with what the one that it replaces still does: no table has been adopted, and
    nothing has ended, before it is so there too."""
    versions = [one["table_version"] for one in (report, predecessor) if one["table_version"] is not None]
    return {
        **report,
        "table_version": min(versions, default=None),
        "table_error": report["table_error"] or predecessor["table_error"],
        "connections": report["connections"] + predecessor["connections"],
        "replicas": all_replicas((report["replicas"], predecessor["replicas"])),
    }


class Past:
    """What the dead of one place had counted when they were last asked, so that counters never fall.
    `report` and `snapshot` hold what is settled."""

    def __init__(self) -> None:
        self.report: Report = {}
        self.snapshot: Snapshot = {}
        self._last: dict[str, Any] = {}

    def told(self, what: str, answer: Any) -> None:
        """What the living one has just answered."""
        self._last[what] = answer

    def settle(self) -> None:
        """It has died."""
        last, self._last = self._last, {}
        if "report" in last:
            ended = _without_running(last["report"]["endpoints"])
            self.report = {"endpoints": _together(self.report.get("endpoints", {}), ended)}
        if "metrics" in last:
            self.snapshot = merge([self.snapshot, _settled(last["metrics"])])


def _together(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _both(key, one[key], other[key])
        if key in one and key in other
        else (one if key in one else other)[key]
        for key in {**one, **other}
    }


def _both(key: str, one: Any, other: Any) -> Any:
    if key in _ALIKE:
        return one
    if key in _LOWEST:
        return min(one, other)
    if isinstance(one, dict):
        return _together(one, other)
    if isinstance(one, list | tuple):
        return [a + b for a, b in zip(one, other, strict=True)]
    return one + other


def _still_there(past: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was counted, what is of endpoints and entities that there still are; and of turns of a split,
    those of the weights that still hold."""
    kept = {}
    for name, endpoint in past.items():
        if name not in now:
            continue
        entities = {e: counted for e, counted in endpoint["entities"].items() if e in now[name]["entities"]}
        if _weights(endpoint) != _weights(now[name]):
            entities = {e: {**counted, "assigned": 0} for e, counted in entities.items()}
        kept[name] = {**endpoint, "entities": entities}
        kept[name]["config_version"] = now[name]["config_version"]
    return kept


def _weights(endpoint: Mapping[str, Any]) -> dict[str, int]:
    return {name: entity["weight"] for name, entity in endpoint["entities"].items()}


def _without_running(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: 0 if key in _RUNNING else _without_running(below) for key, below in value.items()}


def _settled(snapshot: Snapshot) -> Snapshot:
    """What goes on counting when the process is gone."""
    return {
        name: samples
        for name, samples in snapshot.items()
        if FAMILIES[name].kind != "gauge" and name != _SINCE_WEIGHTS_CHANGED
    }
