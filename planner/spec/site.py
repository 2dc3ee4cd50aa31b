"""The site block (`servestate:`): how this place realises what the endpoint blocks ask for.

Every part has a default, so a bundle alone is enough to start: state in `.servestate/`, models as local
processes, listeners on loopback.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from servestate.planner.spec.endpoint import WorkloadType as WorkloadTypeName
from servestate.planner.spec.fields import WANTED, Schema, Seconds, Whole

WORKLOAD_TYPES: tuple[str, ...] = get_args(WorkloadTypeName)
"""The classes that the serving API knows."""


class Listener(Schema):
    """`listen` is HOST:PORT."""

    listen: str

    @property
    def host(self) -> str:
        """The host part; brackets of an IPv6 address are removed."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port part."""
        return int(self.listen.rpartition(":")[2])


class SecretsBackend(Schema):
    """Where `{{secrets/scope/key}}` is looked up: `env` reads SERVESTATE_SECRET_<SCOPE>__<KEY>."""

    backend: Literal["env"] = "env"


class ProcessProvider(Schema):
    """Local processes. `ports` is the range, both ends included, that engines listen in."""

    ports: str = "21000-28999"

    @property
    def port_range(self) -> range:
        """The ports as a range."""
        first, _, last = self.ports.partition("-")
        return range(int(first), int(last) + 1)


class DockerProvider(Schema):
    """Parsed; not supported yet."""

    url: str = ""


class Providers(Schema):
    """The providers of this site, by name."""

    process: ProcessProvider = ProcessProvider()
    docker: DockerProvider | None = None


class WorkloadType(Schema):
    """What a workload_type of the serving API means here."""

    provider: Literal["process", "docker"] = "process"
    gpus: Whole = Field(default=0, ge=0, le=64)


class _Timings(Schema):
    """Durations in seconds; None leaves the decision to the next wider place."""

    ready_timeout_s: Seconds | None = None
    drain_timeout_s: Seconds | None = None
    stop_grace_s: Seconds | None = None


class ModelVersion(_Timings):
    """How one version of a model is run.

    `source` is where the weights are. `args` are added to the engine's arguments; `argv` is the whole
    command of the engine `command` and contains `{port}`. `env` values may be secret references.
    `health_path` answers 200 once the engine can serve.
    """

    engine: Literal["llamacpp", "command"]
    source: str = ""
    args: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    health_path: str = "/health"


class Model(Schema):
    """What an `entity_name` means here: its versions, and the task (`llm/v1/chat`, …; "" = any)."""

    task: str = ""
    versions: dict[str, ModelVersion] = Field(default_factory=dict)


class Override(_Timings):
    """What one address does differently: `endpoint` for all its entities, `endpoint/entity` for one."""

    args: tuple[str, ...] = ()
    strategy: Literal["surge", "recreate"] | None = None


_EVERY_CLASS_LOCAL = {name: WorkloadType() for name in WORKLOAD_TYPES}


def _known_class(name: Any) -> Any:
    if name in _EVERY_CLASS_LOCAL:
        return name
    raise PydanticCustomError(WANTED, f"one of {', '.join(WORKLOAD_TYPES)}")


_ClassName = Annotated[str, BeforeValidator(_known_class)]


def _with_every_class(given: Any) -> Any:
    return {**_EVERY_CLASS_LOCAL, **given} if isinstance(given, dict) else given


class Site(Schema):
    """The whole site block. `workload_types` holds every class; those not given run as local processes."""

    state: str = "sqlite:///.servestate/state.db"
    router: Listener = Listener(listen="127.0.0.1:8080")
    management: Listener = Listener(listen="127.0.0.1:8081")
    secrets: SecretsBackend = SecretsBackend()
    providers: Providers = Providers()
    workload_types: Annotated[dict[_ClassName, WorkloadType], BeforeValidator(_with_every_class)] = Field(
        default_factory=lambda: dict(_EVERY_CLASS_LOCAL)
    )
    models: dict[str, Model] = Field(default_factory=dict)
    overrides: dict[str, Override] = Field(default_factory=dict)
