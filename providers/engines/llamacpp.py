"""The engine `llamacpp`: llama.cpp's own HTTP server, from the package xllamacpp."""

from __future__ import annotations

from pathlib import Path

from servestate.planner.launch import LaunchSpec, Mount
from servestate.providers.engines.engine import (
    MODEL_ROOT,
    Command,
    ContainerCommand,
    FirstRequest,
    NeedsFile,
)
from servestate.providers.engines.first_request import openai_request
from servestate.providers.engines.flags import flags, interpreter, needs_module
from servestate.providers.protocol import PermanentError

SERVER = Path(__file__).with_name("llamacpp_server.py")
"""Run by path: another interpreter, which has xllamacpp, need not have servestate."""
GGUF_MAGIC = b"GGUF"


class LlamaCppEngine:
    """Serves one GGUF file. The spec's args are flags of `llamacpp_server`."""

    def command(self, spec: LaunchSpec, port: int, base_dir: Path, key_file: Path | None) -> Command:
        """See `Engine.command`."""
        model = gguf_path(spec, base_dir)
        # -P: the working directory is the user's and must not shadow modules.
        start = (interpreter(spec, base_dir), "-P", str(SERVER))
        given = _flags(spec, str(model), "127.0.0.1", port, str(key_file) if key_file else None)
        weights = NeedsFile(
            model,
            GGUF_MAGIC,
            "GGUF",
            "point `source` at a GGUF file; relative paths start at the bundle's folder",
        )
        module = needs_module(spec, "xllamacpp", "install it: pip install 'servestate[llamacpp]'")
        return Command((*start, *given), needs=(*module, weights))

    def container(self, spec: LaunchSpec, base_dir: Path, key_file: str | None) -> ContainerCommand:
        """See `Engine.container`. The image's entrypoint takes the flags of llama.cpp's own server."""
        assert spec.container is not None, "resolve() gives every container spec its container"
        model = gguf_path(spec, base_dir)
        inside = f"{MODEL_ROOT}/{model.name}"
        given = _flags(spec, inside, "0.0.0.0", spec.container.port, key_file)  # noqa: S104  # inside only
        return ContainerCommand(given, spec.container.port, mounts=(Mount(str(model), inside),))

    def key_text(self, key: str) -> str:
        """See `Engine.key_text`. One key a line."""
        return f"{key}\n"

    def phase(self, line: str) -> str:
        """See `Engine.phase`. It is ready too soon to tell of phases."""
        return ""

    def first_request(self, spec: LaunchSpec) -> FirstRequest | None:
        """See `Engine.first_request`."""
        return openai_request(spec)


def _flags(spec: LaunchSpec, model: str, host: str, port: int, key_file: str | None) -> tuple[str, ...]:
    given = ["--model", model, "--alias", spec.model, "--host", host, "--port", str(port)]
    given += ["--api-key-file", key_file] if key_file else []
    given += ["--embeddings"] if spec.task == "llm/v1/embeddings" else []
    return (*given, *flags(spec.options), *spec.args)


def gguf_path(spec: LaunchSpec, base_dir: Path) -> Path:
    """Where the weights are. Raises PermanentError SS502 for a source that is not a local file."""
    scheme, separator, rest = spec.source.partition("://")
    if not separator or scheme != "file" or not rest:
        raise PermanentError(
            "SS502",
            f'engine llamacpp cannot load "{spec.source}" for model "{spec.model}"',
            "download the weights and write the source as file://PATH.gguf",
        )
    return base_dir / rest
