"""Diagnostics: what is wrong, where, and how to fix it. Every user-facing error is one of these.

Code ranges: SS0xx the command line · SS1xx YAML, schema and rules of the endpoint block · SS2xx resolving
models, engines and providers · SS3xx planning, saved plans · SS4xx state, lock, journal · SS5xx launching and
readiness · SS6xx routing table and router.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad: an error stops the verb, a warning is printed and the verb goes on."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file. Lines and columns count from 1; `key` is the dotted path of the YAML key."""

    file: str
    line: int
    column: int
    key: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. `what` is one line; `detail` may hold several; `fix` says what to do."""

    code: str
    what: str
    fix: str = ""
    where: Where | None = None
    detail: str = ""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        lines = [f"{place}{self.code} {self.what}"]
        lines += [f"    {line}" for line in self.detail.splitlines()]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class InvalidInput(Exception):
    """Raised with every finding of a run, never only the first. At least one has severity error."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__("\n".join(str(d) for d in self.diagnostics))
