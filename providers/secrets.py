"""Secrets: references in, values out, at the last moment. A value is never stored, logged or compared.

A reference is `{{secrets/SCOPE/KEY}}`. The `env` backend reads it from the environment variable
`SERVESTATE_SECRET_<SCOPE>__<KEY>`: upper case, every other character `_`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn, Protocol, runtime_checkable

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import Spec
from servestate.providers.protocol import PermanentError

Recorded = Callable[[], Mapping[InstanceAddress, Spec]]
"""The specs of all instances that are recorded at the time of the call. Raises TransientError."""

_SHORTEST_LINE = 4
"""Characters of a line that is hidden by itself: a shorter one is part of much that is no secret."""

_REFERENCE = re.compile(r"\{\{\s*secrets/(?P<scope>[^/{}\s]+)/(?P<key>[^/{}\s]+)\s*\}\}")


class Secret:
    """A secret value that no formatting, logging, copying or pickling reveals; only `reveal()` does."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied")


class Secrets(Protocol):
    """A backend that `{{secrets/scope/key}}` resolves through."""

    def get(self, scope: str, key: str) -> Secret:
        """The value. Raises PermanentError SS501 naming the reference and how to provide it."""


@runtime_checkable
class Redactor(Protocol):
    """What a provider also does that shows what engines wrote: learn which secrets may be in it."""

    def consult(self, recorded: Recorded) -> None:
        """Ask this from now on for the spec of what another command launched."""


class EnvSecrets:
    """The backend `env`: one environment variable per secret."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def get(self, scope: str, key: str) -> Secret:
        """See `Secrets.get`. An empty variable counts as missing: it is never a key."""
        variable = variable_name(scope, key)
        value = self._environ.get(variable, "")
        if not value:
            raise PermanentError(
                "SS501",
                f"secret {{{{secrets/{scope}/{key}}}}} is not set",
                f"set the environment variable {variable} where servestate runs",
            )
        return Secret(value)


def variable_name(scope: str, key: str) -> str:
    """The environment variable of the backend `env` for a reference."""

    def upper(text: str) -> str:
        return re.sub(r"[^A-Z0-9]", "_", text.upper())

    return f"SERVESTATE_SECRET_{upper(scope)}__{upper(key)}"


def references(text: str) -> list[tuple[str, str]]:
    """The (scope, key) of every reference in `text`, in order."""
    return [(m["scope"], m["key"]) for m in _REFERENCE.finditer(text)]


def fill(text: str, secrets: Secrets) -> Secret:
    """`text` with every reference replaced by its value. Raises PermanentError for the first missing one."""
    return Secret(_REFERENCE.sub(lambda m: secrets.get(m["scope"], m["key"]).reveal(), text))


class Mask:
    """Replaces every secret value it was told of. For text that others wrote, such as an engine's log: what
    we write ourselves never holds a value."""

    def __init__(self) -> None:
        self._values: set[str] = set()

    def add(self, values: Iterable[str]) -> None:
        """Hide these from now on, and every line of those that have several: logs come line by line."""
        for value in values:
            lines = (line.strip() for line in value.splitlines())
            parts = (line for line in lines if len(line) >= _SHORTEST_LINE)
            self._values.update(part for part in (value, value.strip(), *parts) if part)

    def hide(self, text: str) -> str:
        """`text` without any of the values; the longest first, as one may contain another."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, "***")
        return text

    def __repr__(self) -> str:
        return f"Mask({len(self._values)} values)"
