"""The site block (`servestate:`): how this place realises what the endpoint blocks ask for.

Every part has a default, so a bundle alone is enough to start: state in `.servestate/`, models as local
processes, listeners on loopback.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from servestate.planner.access import Right
from servestate.planner.launch import LOCAL
from servestate.planner.spec.endpoint import WorkloadType as WorkloadTypeName
from servestate.planner.spec.engine_options import (
    LlamaCppOptions,
    MlflowOptions,
    TransformersOptions,
    VllmOptions,
)
from servestate.planner.spec.fields import WANTED, Bytes, Flag, Fraction, Schema, Seconds, Whole
from servestate.planner.spec.listeners import ManagementListener, RouterListener
from servestate.planner.spec.traffic import TrafficPolicy

WORKLOAD_TYPES: tuple[str, ...] = get_args(WorkloadTypeName)
"""The classes that the serving API knows."""


class SecretsBackend(Schema):
    """Where `{{secrets/scope/key}}` is looked up: `env` reads SERVESTATE_SECRET_<SCOPE>__<KEY>."""

    backend: Literal["env"] = "env"


class AccessToken(Schema):
    """A bearer token, by its SHA-256 (64 hex digits) or as a secret reference, and whose it is: exactly one
    user or service principal, in `groups`, with `rights` beside the grants on single endpoints. It counts
    until `expires` (RFC 3339), for ever where that is left out."""

    user_name: str = ""
    service_principal_name: str = ""
    groups: tuple[str, ...] = ()
    sha256: str = ""
    secret: str = ""
    rights: tuple[Right, ...] = ()
    expires: str = ""

    @property
    def expires_at(self) -> float | None:
        """The moment in seconds since the epoch. Raises ValueError where it is none."""
        if not self.expires:
            return None
        moment = datetime.fromisoformat(self.expires)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class Access(Schema):
    """Who may call. Without `tokens` everybody who reaches the listeners may do everything, so they stay on
    this machine. `hosts` are further names that the management listener is called by. `secret_scopes` are
    those that requests may refer to, all where it is left out: whoever names a secret and the URL that it is
    sent to has it."""

    tokens: tuple[AccessToken, ...] = ()
    hosts: tuple[str, ...] = ()
    secret_scopes: tuple[str, ...] | None = None


class DeclaredGpu(Schema):
    """A GPU of a host that cannot be asked. `id` is what the engine and Docker know it by: index or UUID."""

    id: str
    memory: Bytes
    name: str = ""


class ProcessProvider(Schema):
    """Local processes. `ports` is the range, both ends included, that engines listen in. `gpus` are the GPUs
    of this machine, where they are not to be asked of its driver."""

    ports: str = "21000-28999"
    gpus: tuple[DeclaredGpu, ...] | None = None

    @property
    def port_range(self) -> range:
        """The ports as a range."""
        first, _, last = self.ports.partition("-")
        return range(int(first), int(last) + 1)


class Tls(Schema):
    """Files of a Docker host behind TLS: who signed its certificate, and ours with its key."""

    ca: str
    cert: str
    key: str


class DockerHost(Schema):
    """One Docker Engine.

    `url` is `unix:///PATH`, `ssh://USER@HOST` or `tcp://HOST:PORT` (with `tls`). `address` is the address of
    that host on which ports are published and by which the router reaches them. `gpus` declares its GPUs;
    where it is left out, this machine's driver is asked, or a container of `gpu_probe_image` on a remote host
    that has one. `allowed_paths` are the folders of the host that containers may be given.
    """

    url: str
    address: str = "127.0.0.1"
    tls: Tls | None = None
    gpus: tuple[DeclaredGpu, ...] | None = None
    gpu_probe_image: str = ""
    allowed_paths: tuple[str, ...] = ()


class DockerProvider(DockerHost):
    """Containers on one Docker Engine (`url`), or on several by name (`hosts`).

    `pull` says when an image is fetched: `missing`, `always` (also where the name has moved on) or `never`.
    `image_policy: digest` refuses images that are not named by digest. `cache` is the volume in which
    downloaded weights and compiled kernels are kept on each host.
    """

    url: str = "unix:///var/run/docker.sock"
    hosts: dict[str, DockerHost] = Field(default_factory=dict)
    pull: Literal["never", "missing", "always"] = "missing"
    image_policy: Literal["any", "digest"] = "any"
    cache: str = "servestate-cache"

    @property
    def by_name(self) -> dict[str, DockerHost]:
        """Every host by name; the only one, where `hosts` is left out, is this machine."""
        return dict(self.hosts) or {LOCAL: self}


class Providers(Schema):
    """The providers of this site, by name."""

    process: ProcessProvider = ProcessProvider()
    docker: DockerProvider | None = None


class WorkloadType(Schema):
    """What a workload_type of the serving API means here. `gpus` is how many each replica gets, exclusively
    or `gpu_fraction` of each; `hosts` are those it may run on, all of the provider's where none is named."""

    provider: Literal["process", "docker"] = "process"
    gpus: Whole = Field(default=0, ge=0, le=64)
    gpu_fraction: Fraction = 1.0
    hosts: tuple[str, ...] = ()


class _Timings(Schema):
    """Durations in seconds; None leaves the decision to the next wider place."""

    ready_timeout_s: Seconds | None = None
    drain_timeout_s: Seconds | None = None
    stop_grace_s: Seconds | None = None


class MountSettings(Schema):
    """A folder or file of the host inside a container."""

    source: str
    target: str
    read_only: Flag = True


class ContainerSettings(Schema):
    """What a container gets beyond the defaults, which are as little as possible: see `launch.Container`.
    `port` is what the image's own program listens on (engine `command`)."""

    user: str = ""
    memory: Bytes | None = None
    cpus: float | None = Field(default=None, gt=0, le=4096)
    pids: Whole | None = Field(default=None, ge=16)
    shm_size: Bytes | None = None
    network: str = ""
    mounts: tuple[MountSettings, ...] = ()
    read_only: Flag = True
    port: Whole | None = Field(default=None, ge=1, le=65535)


class ModelVersion(_Timings):
    """How one version of a model is run.

    `source` is where the weights are: `file://PATH`, or `hf://ORG/NAME` where the engine loads from the
    Hugging Face hub. The block named as the engine holds its typed options; `args` are added to its
    arguments; `argv` is the whole command of the engine `command` and contains `{port}`. `env` values may be
    secret references. `health_path` answers 200 once the engine can serve, the engine's own where it is
    left out. `image` and `container` are for the provider docker, `python` (the interpreter of an environment
    that has the engine) for the provider process.
    """

    engine: Literal["llamacpp", "vllm", "transformers", "mlflow", "command"]
    source: str = ""
    args: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    health_path: str = ""
    image: str = ""
    python: str = ""
    container: ContainerSettings = ContainerSettings()
    vllm: VllmOptions | None = None
    llamacpp: LlamaCppOptions | None = None
    transformers: TransformersOptions | None = None
    mlflow: MlflowOptions | None = None


class Optimization(Schema):
    """In which steps provisioned throughput of a model is sold: tokens per second (`throughput_chunk_size`)
    or model units (`model_unit_chunk_size`). `model_type` is its family, for people."""

    model_type: str = ""
    throughput_chunk_size: Whole | None = Field(default=None, ge=1)
    model_unit_chunk_size: Whole | None = Field(default=None, ge=1)


class Model(Schema):
    """What an `entity_name` means here: its versions, and the task (`llm/v1/chat`, …; "" = any).
    `optimization` is for models that the catalogue of foundation models does not know by their name."""

    task: str = ""
    optimization: Optimization | None = None
    versions: dict[str, ModelVersion] = Field(default_factory=dict)


class Override(_Timings):
    """What one address does differently: `endpoint` for all its entities, `endpoint/entity` for one.
    `strategy` forces the order of a replacement, which the plan otherwise chooses by what fits."""

    args: tuple[str, ...] = ()
    strategy: Literal["surge", "recreate"] | None = None
    hosts: tuple[str, ...] = ()


_EVERY_CLASS_LOCAL = {name: WorkloadType() for name in WORKLOAD_TYPES}


def _known_class(name: Any) -> Any:
    if name in _EVERY_CLASS_LOCAL:
        return name
    raise PydanticCustomError(WANTED, f"one of {', '.join(WORKLOAD_TYPES)}")


_ClassName = Annotated[str, BeforeValidator(_known_class)]


def _with_every_class(given: Any) -> Any:
    return {**_EVERY_CLASS_LOCAL, **given} if isinstance(given, dict) else given


class Site(Schema):
    """The whole site block. `workload_types` holds every class; those not given run as local processes.
    `traffic` is by the name of the endpoint, also of one made through the API."""

    state: str = "sqlite:///.servestate/state.db"
    router: RouterListener = RouterListener()
    management: ManagementListener = ManagementListener()
    secrets: SecretsBackend = SecretsBackend()
    access: Access = Access()
    providers: Providers = Providers()
    workload_types: Annotated[dict[_ClassName, WorkloadType], BeforeValidator(_with_every_class)] = Field(
        default_factory=lambda: dict(_EVERY_CLASS_LOCAL)
    )
    models: dict[str, Model] = Field(default_factory=dict)
    overrides: dict[str, Override] = Field(default_factory=dict)
    traffic: dict[str, TrafficPolicy] = Field(default_factory=dict)
