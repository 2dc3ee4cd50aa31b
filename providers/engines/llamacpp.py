"""The engine `llamacpp`: llama.cpp's own HTTP server, from the package xllamacpp."""

from __future__ import annotations

import sys
from pathlib import Path

from servestate.planner.launch import LaunchSpec
from servestate.providers.engines.engine import Command, NeedsFile, NeedsModule
from servestate.providers.protocol import PermanentError

SERVER = "servestate.providers.engines.llamacpp_server"
GGUF_MAGIC = b"GGUF"


class LlamaCppEngine:
    """Serves one GGUF file. The spec's args are flags of `llamacpp_server`."""

    def command(self, spec: LaunchSpec, port: int, base_dir: Path) -> Command:
        """See `Engine.command`."""
        model = gguf_path(spec, base_dir)
        # -P: the working directory is the user's and must not shadow modules.
        start = (sys.executable, "-P", "-m", SERVER, "--model", str(model), "--alias", spec.model)
        address = ("--host", "127.0.0.1", "--port", str(port))
        task = ("--embeddings",) if spec.task == "llm/v1/embeddings" else ()
        needs = (
            NeedsModule("xllamacpp", "install it: pip install 'servestate[llamacpp]'"),
            NeedsFile(
                model,
                GGUF_MAGIC,
                "GGUF",
                "point `source` at a GGUF file; relative paths start at the bundle's folder",
            ),
        )
        return Command((*start, *address, *task, *spec.args), spec.health_path, needs=needs)


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
