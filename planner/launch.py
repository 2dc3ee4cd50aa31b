"""Launch specs: all that decides what a served entity runs as. Their content hash is the revision.

Whatever is here restarts the entity when it changes; whatever is not (traffic, timeouts, tags) restarts
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

Scalar = str | int | float | bool
"""The value of a typed engine option."""

LOCAL = "local"
"""The host that servestate itself runs on: where the provider `process` starts things, and a Docker host
given by nothing but a unix socket."""

DRAIN_TIMEOUT_S = 30.0
"""How long requests in flight on an instance may take to end, where nothing else is configured."""

STOP_GRACE_S = 10.0
"""How long an instance may take to end by itself once it was asked to, where nothing else is configured."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of the host that a container sees. Both paths are absolute, except that `source` may
    be relative to the bundle's folder."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Container:
    """What a container is made of beside the engine's own arguments.

    `image` is as written; `digest` (`sha256:…`, of the registry or of a local image) is what that name meant
    when it was planned, empty before that. `user` is UID[:GID], empty for the image's own user or, where
    that is root, the engine's unprivileged one. `memory`, `shm` (shared memory) are bytes, `cpus` is cores; 0
    means nearly all of the host's memory, Docker's own 64 MiB, no bound. `pids` bounds processes and threads.
    `port` is what the engine listens on inside.
    """

    image: str
    digest: str = ""
    user: str = ""
    memory: int = 0
    cpus: float = 0.0
    pids: int = 4096
    shm: int = 0
    network: str = "bridge"
    mounts: tuple[Mount, ...] = ()
    read_only: bool = True
    port: int = 8000


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an instance runs and what it holds there. `gpus` are ids of the host's GPUs, each held to
    `fraction` (1 = exclusively). Not part of the revision: the same model elsewhere is the same model."""

    host: str = LOCAL
    gpus: tuple[str, ...] = ()
    fraction: float = 1.0


HERE = Placement()
"""On this very host, holding no GPU."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """An entity that a provider starts.

    `model` is the name the engine answers to and the router writes into request bodies. `source` is where the
    weights are (`file://…` relative to the bundle's folder, or empty where the engine needs none). `args` are
    extra engine arguments, or the whole argv (with `{port}`) for the engine `command`. `env` is sorted by
    name; values may hold `{{secrets/scope/key}}` references, never secret values. `health_path` is requested
    until it answers 200.

    `options` are the engine's typed options that were given, sorted by name. `gpus` is how many whole GPUs,
    or fractions `gpu_fraction` of as many, it needs. `python` is the interpreter that has the engine
    installed, empty for servestate's own. `container` is there exactly where the provider runs containers.
    """

    provider: str
    engine: str
    model: str
    source: str = ""
    task: str = ""
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    health_path: str = "/health"
    options: tuple[tuple[str, Scalar], ...] = ()
    gpus: int = 0
    gpu_fraction: float = 1.0
    python: str = ""
    container: Container | None = None

    def option(self, name: str) -> Scalar | None:
        """The value of a typed option, None where it was not given."""
        return next((value for given, value in self.options if given == name), None)


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
