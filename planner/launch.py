"""Launch specs: all that decides what a served entity runs as. Their content hash is the revision.

Whatever is here restarts the entity when it changes; whatever is not (traffic, timeouts, tags) restarts
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

DRAIN_TIMEOUT_S = 30.0
"""How long requests in flight on an instance may take to end, where nothing else is configured."""

STOP_GRACE_S = 10.0
"""How long an instance may take to end by itself once it was asked to, where nothing else is configured."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """An entity that a provider starts.

    `model` is the name the engine answers to and the router writes into request bodies. `source` is where the
    weights are (`file://…` relative to the bundle's folder, or empty where the engine needs none). `args` are
    extra engine arguments, or the whole argv (with `{port}`) for the engine `command`. `env` is sorted by
    name; values may hold `{{secrets/scope/key}}` references, never secret values. `health_path` is requested
    until it answers 200.
    """

    provider: str
    engine: str
    model: str
    source: str = ""
    task: str = ""
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    health_path: str = "/health"


@dataclass(frozen=True, slots=True)
class ExternalSpec:
    """An entity that somebody else runs: a URL to call and a reference to the key.

    `url` is the full URL that requests of this entity's `task` are posted to. The credential is sent as
    header `auth_header` with value `auth_prefix` + secret; `secret` is a `{{secrets/scope/key}}` reference,
    or empty for none. `headers` are sent as they are (organisation ids and the like).
    """

    kind: str
    url: str
    model: str
    task: str
    auth_header: str = "authorization"
    auth_prefix: str = "Bearer "
    secret: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def provider(self) -> str:
        """External entities all belong to the provider of that name."""
        return "external"


Spec = LaunchSpec | ExternalSpec
