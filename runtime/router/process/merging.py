"""The reports and metrics of several workers as one. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from servestate.runtime.router.records.families import FAMILIES, Snapshot
from servestate.runtime.router.records.metrics import merge

Report = dict[str, Any]
Named = Mapping[str, Collection[str]]
"""The endpoints that there are, and the entities of each."""

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
    "inflight": 0,
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
    ended = [_still_there(one, endpoints) for one in past if one]
    for one in ended:
        endpoints = _together(endpoints, one["endpoints"])
    books = [report["books"] for report in reports]
    return {
        **reports[0],
        **_first_errors(reports, _ERRORS),
        **merged_briefs(reports),
        "endpoints": endpoints,
        "books": {
            **_first_errors(books, [key for key in books[0] if key.endswith("_error")]),
            **_sums([*books, *(one["books"] for one in ended)]),
        },
    }


def merged_briefs(reports: Sequence[Report]) -> Report:
    """As `merged`, of what is asked again and again."""
    if not reports:
        return NOTHING
    return {
        **_first_errors(reports, ("table_error",)),
        "table_version": min(report["table_version"] for report in reports),
        "connections": sum(report["connections"] for report in reports),
        "inflight": sum(report["inflight"] for report in reports),
        "replicas": all_replicas(report["replicas"] for report in reports),
    }


def _first_errors(reports: Sequence[Report], keys: Iterable[str]) -> Report:
    return {key: next((r[key] for r in reports if r[key]), None) for key in keys}


def _sums(books: Iterable[Report]) -> Report:
    """What was dropped, and what each caller used."""
    used: dict[tuple[Any, ...], dict[str, Any]] = {}
    dropped: dict[str, int] = {}
    for report in books:
        for row in report["usage"]:
            whose = tuple(row[key] for key in _WHOSE)
            used[whose] = _together(used[whose], row) if whose in used else row
        dropped = _together(dropped, report["dropped"])
    return {"dropped": dropped, "usage": list(used.values())}


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
    """The report of a router, or the brief one, with what the one that it replaces still does: no table has
    been adopted, and nothing has ended, before it is so there too."""
    versions = [one["table_version"] for one in (report, predecessor) if one["table_version"] is not None]
    return {
        **report,
        "table_version": min(versions, default=None),
        "table_error": report["table_error"] or predecessor["table_error"],
        "connections": report["connections"] + predecessor["connections"],
        "inflight": report["inflight"] + predecessor.get("inflight", 0),  # one of a former version has none
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

    def settled(self, what: str) -> Any:
        """What is to be added to an answer to that."""
        return {"report": self.report, "metrics": self.snapshot}.get(what)

    def settle(self) -> None:
        """It has died."""
        last, self._last = self._last, {}
        if "report" in last:
            ended, before = last["report"], self.report or {"endpoints": {}, "books": _sums([])}
            self.report = {
                "endpoints": _together(before["endpoints"], _without_running(ended["endpoints"])),
                "books": _sums([before["books"], ended["books"]]),
            }
        if "metrics" in last:
            self.snapshot = merge([self.snapshot, _settled(last["metrics"])])

    def keep_report(self, endpoints: Mapping[str, Any]) -> None:
        """Forget what does not count in a report of those endpoints any more."""
        if self.report:
            self.report = _still_there(self.report, endpoints)

    def keep_metrics(self, named: Named) -> None:
        """Forget what was counted of other endpoints and entities."""
        self.snapshot = only(self.snapshot, named)


def only(snapshot: Snapshot, named: Named) -> Snapshot:
    """The samples of those endpoints and entities, and those of nothing in particular."""
    return {
        name: [sample for sample in samples if _is_of(named, name, sample[0])]
        for name, samples in snapshot.items()
    }


def named_in(snapshots: Iterable[Snapshot]) -> Named:
    """The endpoints that one of several workers serves."""
    found: dict[str, set[str]] = {}
    for snapshot in snapshots:
        for (endpoint,), _ in snapshot["servestate_config_version"]:
            found.setdefault(endpoint, set())
        for (endpoint, entity, _), _ in snapshot[_SINCE_WEIGHTS_CHANGED]:
            found[endpoint].add(entity)
    return found


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


def _still_there(past: Report, now: Mapping[str, Any]) -> Report:
    """Of what was counted, what is of endpoints and entities that there still are; and of turns of a split,
    those of the weights that still hold."""
    found = _of_those(past, {name: endpoint["entities"].keys() for name, endpoint in now.items()})
    kept = {}
    for name, endpoint in found["endpoints"].items():
        entities = endpoint["entities"]
        if _weights(past["endpoints"][name]) != _weights(now[name]):
            entities = {e: {**counted, "assigned": 0} for e, counted in entities.items()}
        kept[name] = {**endpoint, "entities": entities, "config_version": now[name]["config_version"]}
    return {**found, "endpoints": kept}


def _of_those(past: Report, named: Named) -> Report:
    """A settled report without what is of others."""
    endpoints = {
        name: {**one, "entities": {e: counted for e, counted in one["entities"].items() if e in named[name]}}
        for name, one in past["endpoints"].items()
        if name in named
    }
    books = past["books"]
    usage = [row for row in books["usage"] if row["entity"] in named.get(row["endpoint"], ())]
    return {"endpoints": endpoints, "books": {**books, "usage": usage}}


def _is_of(named: Named, family: str, labels: Sequence[str]) -> bool:
    given = dict(zip(FAMILIES[family].labels, labels, strict=True))
    endpoint = given.get("endpoint")
    if not endpoint:
        return True
    entities = [given[label] for label in ("entity", "from", "to") if given.get(label)]
    return endpoint in named and all(entity in named[endpoint] for entity in entities)


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
