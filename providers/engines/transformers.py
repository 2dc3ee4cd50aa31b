"""The engine `transformers`: the server of the package transformers (checked with 5.23)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from servestate.planner.launch import LaunchSpec
from servestate.planner.served_name import served_name
from servestate.providers.engines.engine import CACHE_ROOT, Command, ContainerCommand, FirstRequest, Need
from servestate.providers.engines.first_request import openai_request
from servestate.providers.engines.flags import flags, interpreter, needs_module
from servestate.providers.engines.progress import SERVING, phase_of, telling
from servestate.providers.engines.sources import Folder, HubModel, hub_or_folder
from servestate.providers.protocol import PermanentError

MODULE = "transformers.cli.transformers"

_ENVIRONMENT = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
_CONTAINER_ENVIRONMENT = {
    "HF_HOME": f"{CACHE_ROOT}/huggingface",
    "HOME": f"{CACHE_ROOT}/home",
    "USER": "serve",
}

_PHASES = (
    telling(r"Loading weights:.*?\| *(\d+)/(\d+)", "loading weights: tensor {0} of {1}"),
    telling(r"Loading checkpoint shards:.*?\| *(\d+)/(\d+)", "loading weights: file {0} of {1}"),
    telling(r"(?:Fetching|Downloading).*?: *(\d+)%", "downloading: {0} %"),
    telling(r"Started server process", "starting the HTTP server"),
    *SERVING,
)


class TransformersEngine:
    """Serves one text-generation model of the Hugging Face hub, or a folder in its form. It knows no keys and
    has no path for embeddings."""

    def command(self, spec: LaunchSpec, port: int, base_dir: Path, key_file: Path | None) -> Command:
        """See `Engine.command`."""
        source = _source(spec, base_dir)
        needs: tuple[Need, ...] = needs_module(
            spec,
            "transformers",
            "install it: pip install 'transformers[serving]', or give `python`: one that has it",
        )
        if isinstance(source, Folder):
            needs += (source.needs("config.json", "model"),)
        # -P: the working directory is the user's and must not shadow modules.
        start = (interpreter(spec, base_dir), "-P", "-m", MODULE)
        given = _arguments(spec, "127.0.0.1", port)
        return Command(start + given, tuple(sorted(_ENVIRONMENT.items())), needs)

    def container(self, spec: LaunchSpec, base_dir: Path, key_file: str | None) -> ContainerCommand:
        """See `Engine.container`. The image has no entrypoint and the console script `transformers`."""
        assert spec.container is not None, "resolve() gives every container spec its container"
        source, port = _source(spec, base_dir), spec.container.port
        return ContainerCommand(
            ("transformers", *_arguments(spec, "0.0.0.0", port)),  # noqa: S104  # inside only
            port,
            env=tuple(sorted({**_ENVIRONMENT, **_CONTAINER_ENVIRONMENT}.items())),
            mounts=(source.mount,) if isinstance(source, Folder) else (),
            caches=("huggingface", "home"),
        )

    def key_text(self, key: str) -> str:
        """See `Engine.key_text`. It cannot ask for one."""
        return ""

    def phase(self, line: str) -> str:
        """See `Engine.phase`."""
        return phase_of(line, _PHASES)

    def first_request(self, spec: LaunchSpec) -> FirstRequest | None:
        """See `Engine.first_request`."""
        return openai_request(replace(spec, model=_name(spec)))


def _source(spec: LaunchSpec, base_dir: Path) -> HubModel | Folder:
    """What it loads. Raises PermanentError SS502 or SS503 for what it could not, or not serve."""
    if spec.task == "llm/v1/embeddings":
        what = f'engine transformers has no path for embeddings, the task of model "{spec.model}"'
        raise PermanentError("SS503", what, "serve it with the engine vllm or llamacpp")
    source = hub_or_folder(spec, base_dir)
    if isinstance(source, Folder) and set("@:") & set(_name(spec)):
        what = f'engine transformers reads "@" and ":" in "{spec.source}" as a revision and a file'
        raise PermanentError("SS502", what, "rename the folder")
    return source


def _name(spec: LaunchSpec) -> str:
    return served_name(spec.engine, spec.model, spec.source, spec.container is not None)


def _arguments(spec: LaunchSpec, host: str, port: int) -> tuple[str, ...]:
    options = dict(spec.options)
    if spec.gpus and options.get("device", "auto") == "auto":
        options["device"] = "auto" if spec.gpus > 1 else "cuda"  # auto spreads the layers over all GPUs
    return (
        "serve",
        _name(spec),
        "--host",
        host,
        "--port",
        str(port),
        *flags(sorted(options.items())),
        *spec.args,
    )
