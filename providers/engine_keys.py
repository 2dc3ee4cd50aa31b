"""The keys of engines: derived from a random seed in a file, so none of them is ever stored.

A key is HMAC-SHA256 of its reference under the seed. Whoever holds the seed file (mode 0600) can derive every
key: the command that launches, and the router.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets as random
from contextlib import suppress
from pathlib import Path

from servestate.planner.engine_keys import SCOPE
from servestate.providers.protocol import PermanentError
from servestate.providers.secrets import Secret, Secrets

_SEED_BYTES = 32


class EngineKeys:
    """A secrets backend: engine keys from the seed at `path`, all else from `others`."""

    def __init__(self, path: Path, others: Secrets) -> None:
        self._path = path
        self._others = others
        self._seed = b""

    def get(self, scope: str, key: str) -> Secret:
        """See `Secrets.get`. Raises PermanentError SS516 where the seed cannot be read."""
        if scope != SCOPE:
            return self._others.get(scope, key)
        self._seed = self._seed or self._read()
        return Secret(hmac.new(self._seed, key.encode(), hashlib.sha256).hexdigest())

    def _read(self) -> bytes:
        try:
            if not self._path.exists():
                self._mint()
            seed = self._path.read_bytes()
        except OSError as error:
            what = f"the seed of the engines' keys cannot be used: {error}"
            raise PermanentError("SS516", what, "run as the user who applied") from error
        if len(seed) != _SEED_BYTES:
            what = f"{self._path} is damaged: it is {len(seed)} bytes long, not {_SEED_BYTES}"
            raise PermanentError("SS516", what, "remove it, then replace the instances: their keys are lost")
        return seed

    def _mint(self) -> None:
        """Write a fresh seed. Of two who do so at once, the first one's stays."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.{random.token_hex(8)}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, random.token_bytes(_SEED_BYTES))
            os.fsync(fd)
            with suppress(FileExistsError):
                os.link(draft, self._path)
        finally:
            os.close(fd)
            draft.unlink()
