"""The engine `mlflow`: MLflow's scoring server (checked with 3.18)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from servestate.planner.launch import LaunchSpec
from servestate.providers.engines.engine import CACHE_ROOT, Command, ContainerCommand, FirstRequest, Need
from servestate.providers.engines.flags import interpreter, needs_module
from servestate.providers.engines.progress import SERVING, phase_of, telling
from servestate.providers.engines.sources import Folder, local_folder, unknown_source
from servestate.providers.protocol import PermanentError

_REGISTERED = re.compile(r"models:/[^\s/@][^\s/]*(?:/[^\s/]+)?\Z")
_FLAGS = {"workers": "--workers", "timeout_s": "--timeout"}
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true"}

_PHASES = (
    telling(r"Downloading artifacts: *(\d+)%", "downloading the model: {0} %"),
    telling(r"Running command '", "loading the model"),
    *SERVING,
)


class MlflowEngine:
    """Serves a model in MLflow's form, from a folder or from the registry that MLFLOW_TRACKING_URI in the
    entity's environment names. It answers `/invocations` alone and knows no keys."""

    def command(self, spec: LaunchSpec, port: int, base_dir: Path, key_file: Path | None) -> Command:
        """See `Engine.command`."""
        folder, python = _folder(spec, base_dir), interpreter(spec, base_dir)
        needs: tuple[Need, ...] = needs_module(
            spec, "mlflow", "install it: pip install mlflow, or give `python`: the path of one that has it"
        )
        if folder:
            needs += (folder.needs("MLmodel", "MLflow model"),)
        # -P: the working directory is the user's and must not shadow modules.
        start = (python, "-P", "-m", "mlflow")
        given = _arguments(spec, str(folder.path) if folder else spec.source, "127.0.0.1", port)
        # It starts uvicorn by name: that of the same environment has to be found first.
        env = (
            {**_ENVIRONMENT, "PATH": f"{Path(python).parent}:{os.defpath}"} if "/" in python else _ENVIRONMENT
        )
        return Command(start + given, tuple(sorted(env.items())), needs)

    def container(self, spec: LaunchSpec, base_dir: Path, key_file: str | None) -> ContainerCommand:
        """See `Engine.container`. The image has no entrypoint and the console script `mlflow`; images of
        `mlflow models build-docker` hold their model and are for the engine `command`."""
        assert spec.container is not None, "resolve() gives every container spec its container"
        folder, port = _folder(spec, base_dir), spec.container.port
        model = folder.inside if folder else spec.source
        return ContainerCommand(
            ("mlflow", *_arguments(spec, model, "0.0.0.0", port)),  # noqa: S104  # inside only
            port,
            env=tuple(sorted({**_ENVIRONMENT, "HOME": f"{CACHE_ROOT}/home", "USER": "serve"}.items())),
            mounts=(folder.mount,) if folder else (),
            caches=("home",),
        )

    def key_text(self, key: str) -> str:
        """See `Engine.key_text`. It cannot ask for one."""
        return ""

    def phase(self, line: str) -> str:
        """See `Engine.phase`."""
        return phase_of(line, _PHASES)

    def first_request(self, spec: LaunchSpec) -> FirstRequest | None:
        """See `Engine.first_request`. Which columns a model takes is its own affair, and its health path
        answers 200 only once the model is loaded."""
        return None


def _folder(spec: LaunchSpec, base_dir: Path) -> Folder | None:
    """The model's folder, None for one of the registry. Raises PermanentError SS502 or SS503."""
    if spec.task:
        what = (
            f'engine mlflow answers /invocations and has no path for {spec.task}, the task of "{spec.model}"'
        )
        raise PermanentError("SS503", what, "remove the task of the model")
    folder = local_folder(spec, base_dir)
    if folder is None and not _REGISTERED.match(spec.source):
        raise unknown_source(spec, "file://FOLDER, models:/NAME/VERSION or models:/NAME@ALIAS")
    return folder


def _arguments(spec: LaunchSpec, model: str, host: str, port: int) -> tuple[str, ...]:
    given = ["models", "serve", "--model-uri", model, "--host", host, "--port", str(port)]
    given += ["--env-manager", "local"]  # the environment is the interpreter's or the image's: none is built
    for name, value in spec.options:
        given += [_FLAGS[name], str(value)]
    return (*given, *spec.args)
