"""All secrets of a site: engine keys, those that came with requests, and the environment's for the rest."""

from __future__ import annotations

import os
from pathlib import Path

from servestate.providers.engine_keys import EngineKeys
from servestate.providers.kept_secrets import KeptSecrets
from servestate.providers.secrets import EnvSecrets, Secret


class SiteSecrets:
    """The backend that references of a site resolve through. What is pickled of it are the paths alone: a
    process that is given one reads the files itself, and its own environment."""

    def __init__(self, engine_key: Path, kept: Path) -> None:
        self._paths = engine_key, kept
        self._backend = EngineKeys(engine_key, KeptSecrets(kept, EnvSecrets(os.environ)))

    def get(self, scope: str, key: str) -> Secret:
        """See `Secrets.get`."""
        return self._backend.get(scope, key)

    def __reduce__(self) -> tuple[type[SiteSecrets], tuple[Path, Path]]:
        return SiteSecrets, self._paths
