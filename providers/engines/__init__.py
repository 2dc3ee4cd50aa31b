"""Engines: what to run for a launch spec. Pure; one file per engine."""

from __future__ import annotations

from servestate.providers.engines.command import CommandEngine
from servestate.providers.engines.engine import Engine
from servestate.providers.engines.llamacpp import LlamaCppEngine
from servestate.providers.engines.mlflow import MlflowEngine
from servestate.providers.engines.transformers import TransformersEngine
from servestate.providers.engines.vllm import VllmEngine
from servestate.providers.protocol import PermanentError

ENGINES: dict[str, Engine] = {
    "command": CommandEngine(),
    "llamacpp": LlamaCppEngine(),
    "mlflow": MlflowEngine(),
    "transformers": TransformersEngine(),
    "vllm": VllmEngine(),
}


def engine_for(name: str) -> Engine:
    """The engine of that name. Raises PermanentError SS503 naming the known ones."""
    engine = ENGINES.get(name)
    if engine is None:
        known = ", ".join(sorted(ENGINES))
        raise PermanentError("SS503", f'engine "{name}" is not known', f"use one of: {known}")
    return engine
