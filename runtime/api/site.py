"""The site as it is configured now: a model that somebody adds to it can be served without starting anew."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.spec.site import Site
from servestate.runtime.configuration import Options, configuration_files, included_files, load_configuration
from servestate.runtime.file_stamps import stamp_of
from servestate.runtime.workspace import Workspace, open_workspace

_KEPT = ("state", "router", "management")
"""What a running servestate cannot change: where its state is and where it listens."""


class SiteSource:
    """Reads the configuration again whenever its files have changed; while it is wrong, the last one that was
    right counts, and `tell` hears why. Any thread may call."""

    def __init__(self, root: Path, site: Site, options: Options | None, tell: Callable[[str], None]) -> None:
        self._root = root
        self._site = site
        self._options = options
        self._tell = tell
        self._lock = threading.Lock()
        self._included: list[Path] = []
        self._included = self._find_included()
        self._stamp = self._look()

    def site(self) -> Site:
        """The site now."""
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._included = self._find_included()
                self._stamp = self._look()
                self._read()
            return self._site

    def workspace(self) -> Workspace:
        """A workspace of its own for whoever asks: stores are one thread's."""
        return open_workspace(self._root, self.site())

    def _read(self) -> None:
        assert self._options is not None, "without a configuration no stamp ever changes"
        try:
            found = load_configuration(self._options).site
        except InvalidInput as error:
            first = str(error).partition("\n")[0]
            self._tell(f"the configuration is wrong, the one before still counts: {first}")
            return
        self._site = found.model_copy(update={name: getattr(self._site, name) for name in _KEPT})

    def _look(self) -> object:
        if self._options is None:
            return None
        try:
            files = [*configuration_files(self._options.path), *self._included]
            return [(str(file), stamp_of(file)) for file in files]
        except (OSError, InvalidInput):  # somebody is at it: it is read once it is back
            return None

    def _find_included(self) -> list[Path]:
        """Looked for anew whenever a file has changed: to include another one changes the one that does."""
        if self._options is None:
            return []
        try:
            return included_files(self._options.path)
        except InvalidInput:
            return self._included
