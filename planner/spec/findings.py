"""Collects every finding of a run, in the order of the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from servestate.planner.diagnostics import Diagnostic, InvalidInput, Severity, Where
from servestate.planner.spec.characters import shorten
from servestate.planner.spec.places import Path, where

LIMIT = 500
"""Errors after which loading stops. A generated file can hold a million mistakes; nobody reads that many."""

_LONGEST = 500
_BREAKING = frozenset({"SS151", "SS153", "SS154", "SS156", "SS174", "SS175", "SS176"})
"""Codes after which there is no value to judge: what else is said of that place would only confuse."""
LISTED = 3
"""Further places of a warning that are listed."""


class TooMany(Exception):
    """Raised by the error that reaches LIMIT. Findings.check() then reports what is known."""


Place = tuple[int, Path]
"""A mark and the path of the key that stands there."""


@dataclass(slots=True)
class _Note:
    """A warning with the first places it is true of."""

    count: int = 0
    places: list[Place] = field(default_factory=list)


class Findings:
    """What is wrong so far. `names` are the documents' names, by number."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._found: dict[Severity, list[tuple[int, Diagnostic]]] = {s: [] for s in Severity}
        self._broken: set[int | None] = set()
        self._notes: dict[tuple[str, str, str], _Note] = {}

    def error(
        self, code: str, what: str, fix: str, mark: int | None = None, path: Path = (), detail: str = ""
    ) -> None:
        """Note an error at `mark`, or one that stands nowhere in the documents (a wrong argument)."""
        self._add(Severity.ERROR, code, what, fix, mark, path, detail)

    def warning(
        self, code: str, what: str, fix: str, mark: int | None = None, path: Path = (), detail: str = ""
    ) -> None:
        """Note something that people should know and that stops nothing."""
        self._add(Severity.WARNING, code, what, fix, mark, path, detail)

    def spoil(self, mark: int) -> None:
        """Say no more about the value at `mark`: that it is not there has been found, here or elsewhere."""
        self._broken.add(mark)

    def note(self, code: str, what: str, fix: str, place: Callable[[], Place]) -> None:
        """Note a warning once, however many places it is true of; the first few others are listed. `place` is
        asked for those only."""
        note = self._notes.setdefault((code, what, fix), _Note())
        note.count += 1
        if note.count <= 1 + LISTED:
            note.places.append(place())

    def _noted(self) -> list[tuple[int, Diagnostic]]:
        return [
            (
                note.places[0][0],
                Diagnostic(*key, self._where(*note.places[0]), self._others(note), Severity.WARNING),
            )
            for key, note in self._notes.items()
        ]

    def _others(self, note: _Note) -> str:
        others = [str(where(mark, self.names)) for mark, _ in note.places[1:]]
        more = note.count - len(note.places)
        return (f"also at {', '.join(others)}" if others else "") + (f" and {more} more" if more else "")

    def _add(
        self, severity: Severity, code: str, what: str, fix: str, mark: int | None, path: Path, detail: str
    ) -> None:
        if mark in self._broken and code not in _BREAKING:
            return
        if code in _BREAKING and mark is not None:
            self.spoil(mark)
        place = None if mark is None else self._where(mark, path)
        detail = "\n".join(shorten(line, _LONGEST) for line in detail.splitlines())
        finding = Diagnostic(code, shorten(what, _LONGEST), shorten(fix, _LONGEST), place, detail, severity)
        self._found[severity].append((-1 if mark is None else mark, finding))
        if severity is Severity.ERROR and len(self._found[severity]) >= LIMIT:
            raise TooMany

    def _where(self, mark: int, path: Path) -> Where:
        return where(mark, self.names, tuple(shorten(p) if isinstance(p, str) else p for p in path))

    @property
    def failed(self) -> bool:
        """Whether there is an error."""
        return bool(self._found[Severity.ERROR])

    def warnings(self) -> tuple[Diagnostic, ...]:
        """The warnings, in file order."""
        return tuple(self._in_order([Severity.WARNING]))

    def check(self) -> None:
        """Raise InvalidInput with everything found, warnings too, if anything is an error."""
        if self.failed:
            raise InvalidInput(self._in_order(list(Severity)))

    def _in_order(self, severities: Sequence[Severity]) -> list[Diagnostic]:
        found = [pair for severity in severities for pair in self._found[severity]]
        found += self._noted() if Severity.WARNING in severities else []
        found.sort(key=lambda pair: pair[0])
        return [finding for _, finding in found] + self._stopped()

    def _stopped(self) -> list[Diagnostic]:
        if len(self._found[Severity.ERROR]) < LIMIT:
            return []
        return [Diagnostic("SS100", f"stopped after {LIMIT} errors", "mend those above and run again")]
