"""The engine `vllm`: vLLM's server with the OpenAI paths (checked with 0.32).

As a process it is started by module: the console script asks for the version of a distribution called `vllm`,
which the builds for CPUs do not have. In a container the image's entrypoint is `vllm serve`.
"""

from __future__ import annotations

from pathlib import Path

from servestate.planner.fit_facts import VLLM_UTILIZATION
from servestate.planner.launch import STOP_GRACE_S, LaunchSpec, Scalar
from servestate.planner.spec.engine_options import tensor_parallel
from servestate.providers.engines.engine import CACHE_ROOT, Command, ContainerCommand, FirstRequest, Need
from servestate.providers.engines.first_request import openai_request
from servestate.providers.engines.flags import flags, interpreter, needs_module
from servestate.providers.engines.progress import SERVING, phase_of, telling
from servestate.providers.engines.sources import Folder, HubModel, hub_or_folder
from servestate.providers.protocol import PermanentError

MODULE = "vllm.entrypoints.openai.api_server"

SHUTDOWN_TIMEOUT_S = int(STOP_GRACE_S) - 3
"""How long vLLM lets running requests end once it was asked to stop (its own default: not at all). Less than
the grace after which it is killed, so that it can still free its GPUs and end its workers by itself."""

USER = "2000:0"
"""The unprivileged user that vLLM's images are made for: a group 0 member, as OpenShift has it."""

_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_CONTAINER_ENVIRONMENT = {
    "HF_HOME": f"{CACHE_ROOT}/huggingface",
    "VLLM_CACHE_ROOT": f"{CACHE_ROOT}/vllm",
    # Kernels are compiled into the home and loaded from there, which a tmpfs mounted noexec does not allow.
    "HOME": f"{CACHE_ROOT}/home",
    # PyTorch asks for the user's name, and a numeric user of the container has none.
    "USER": "vllm",
}
_CACHES = ("huggingface", "vllm", "home")

_S = r"([\d.]+) ?s"
_PHASES = (
    telling(r"Resolved architecture: (\w+)", "starting the engine for {0}"),
    telling(r"Initializing a V\d LLM engine", "starting the workers"),
    telling(r"Starting to load model", "loading the model"),
    telling(rf"Time spent downloading weights.*?: {_S}", "downloaded the weights in {0} s"),
    telling(r"Loading safetensors checkpoint shards:.*?\| *(\d+)/(\d+)", "loading weights: file {0} of {1}"),
    telling(rf"Loading weights took {_S}", "loaded the weights in {0} s"),
    telling(rf"Model loading took ([\d.]+) GiB.*? {_S}", "loaded the model: {0} GiB in {1} s"),
    telling(r"Warming up model for the compilation", "compiling the model"),
    telling(rf"Dynamo bytecode transform time: {_S}", "compiling: traced the model in {0} s"),
    telling(rf"torch\.compile (?:takes|took) {_S}", "compiled the model in {0} s"),
    telling(
        r"Free memory on device.*Actual usage is ([\d.]+) ?GiB .*?, ([\d.]+) ?GiB for peak activation,"
        r" and (-?[\d.]+) ?GiB for CUDAGraph",
        "measured: {0} GiB weights and libraries, {1} GiB peak activation, {2} GiB CUDA graphs",
    ),
    telling(r"Available KV cache memory: (-?[\d.]+) GiB", "KV cache: {0} GiB"),
    telling(
        r"KV cache size: ([\d,]+) tokens.*Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x",
        "KV cache: {0} tokens, {2} requests of {1} tokens at once",
    ),
    telling(r"KV cache size: ([\d,]+) tokens", "KV cache: {0} tokens"),
    telling(
        r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x",
        "room for {1} requests of {0} tokens at once",
    ),
    telling(r"Capturing CUDA graphs?.*?\| *(\d+)/(\d+)", "capturing CUDA graphs: {0} of {1}"),
    telling(
        rf"Graph capturing finished in {_S}\w*, took (-?[\d.]+) GiB",
        "captured CUDA graphs in {0} s: {1} GiB",
    ),
    telling(
        rf"init engine .*took {_S}\w* \(compilation: {_S}",
        "initialised the engine in {0} s, compiling {1} s of it",
    ),
    telling(rf"init engine .*took {_S}", "initialised the engine in {0} s"),
    telling(r"Starting vLLM .*server", "starting the HTTP server"),
    *SERVING,
)


class VllmEngine:
    """Serves a model of the Hugging Face hub, or a folder in its form."""

    def command(self, spec: LaunchSpec, port: int, base_dir: Path, key_file: Path | None) -> Command:
        """See `Engine.command`. `key_file` ends in .yaml: vLLM reads no other configuration file."""
        source = hub_or_folder(spec, base_dir)
        needs: tuple[Need, ...] = needs_module(
            spec, "vllm", "install it, or give `python`: the path of one that has it"
        )
        if isinstance(source, Folder):
            needs += (source.needs("config.json", "model"),)
        model = str(source.path) if isinstance(source, Folder) else source.name
        # -P: the working directory is the user's and must not shadow modules.
        start = (interpreter(spec, base_dir), "-P", "-m", MODULE, "--model", model)
        given = _flags(spec, source, "127.0.0.1", port, str(key_file) if key_file else None)
        return Command(start + given, tuple(sorted(_environment(spec).items())), needs)

    def container(self, spec: LaunchSpec, base_dir: Path, key_file: str | None) -> ContainerCommand:
        """See `Engine.container`."""
        assert spec.container is not None, "resolve() gives every container spec its container"
        source, port = hub_or_folder(spec, base_dir), spec.container.port
        model = source.inside if isinstance(source, Folder) else source.name
        return ContainerCommand(
            (model, *_flags(spec, source, "0.0.0.0", port, key_file)),  # noqa: S104  # inside only
            port,
            env=tuple(sorted({**_environment(spec), **_CONTAINER_ENVIRONMENT}.items())),
            mounts=(source.mount,) if isinstance(source, Folder) else (),
            caches=_CACHES,
            user=USER,
        )

    def key_text(self, key: str) -> str:
        """See `Engine.key_text`. A configuration file, in which the key is text whatever it looks like."""
        return f'api-key: "{key}"\n'

    def phase(self, line: str) -> str:
        """See `Engine.phase`. Versions differ in units and separators, so lines are matched loosely."""
        return phase_of(line, _PHASES)

    def first_request(self, spec: LaunchSpec) -> FirstRequest | None:
        """See `Engine.first_request`."""
        return openai_request(spec)


def _environment(spec: LaunchSpec) -> dict[str, str]:
    sleeps = spec.option("enable_sleep_mode")
    # The paths that put it to sleep are there in development mode only; the router lets nobody reach them.
    return {**_ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1"} if sleeps else _ENVIRONMENT


def _flags(
    spec: LaunchSpec, source: HubModel | Folder, host: str, port: int, key_file: str | None
) -> tuple[str, ...]:
    """Everything but the model, which the two ways to start take differently."""
    given = ["--served-model-name", spec.model, "--host", host, "--port", str(port)]
    given += ["--config", key_file] if key_file else []
    given += ["--shutdown-timeout", str(SHUTDOWN_TIMEOUT_S)]
    given += ["--runner", "pooling"] if spec.task == "llm/v1/embeddings" else []
    return (*given, *flags(_options(spec, source)), *spec.args)


def _options(spec: LaunchSpec, source: HubModel | Folder) -> tuple[tuple[str, Scalar], ...]:
    """The options given, and those that follow from the GPUs and the source."""
    found = dict(spec.options)
    if (workers := tensor_parallel(spec.gpus, found)) > 1:
        found.setdefault("tensor_parallel_size", workers)
    if spec.gpu_fraction < 1:
        found.setdefault("gpu_memory_utilization", round(VLLM_UTILIZATION * spec.gpu_fraction, 4))
    if isinstance(source, HubModel) and source.revision:
        if found.get("revision", source.revision) != source.revision:
            what = f'model "{spec.model}" has two revisions: {source.revision} and {found["revision"]}'
            raise PermanentError("SS502", what, "give it in the source or as the option `revision`, not both")
        found["revision"] = source.revision
    return tuple(sorted(found.items()))
