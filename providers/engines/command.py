"""The engine `command`: any program that serves HTTP on the port it is told."""

from __future__ import annotations

from pathlib import Path

from servestate.planner.launch import LaunchSpec
from servestate.providers.engines.engine import Command, ContainerCommand, FirstRequest
from servestate.providers.engines.first_request import openai_request
from servestate.providers.protocol import PermanentError

PORT = "{port}"


class CommandEngine:
    """The spec's args are the whole argv; `{port}` in any of them becomes the port."""

    def command(self, spec: LaunchSpec, port: int, base_dir: Path, key_file: Path | None) -> Command:
        """See `Engine.command`. An argv without `{port}` is refused: two instances would fight for one
        port, and neither could be told from a stranger that already has it."""
        if not any(PORT in arg for arg in spec.args):
            raise PermanentError(
                "SS503",
                f'the command of model "{spec.model}" never names its port',
                "write {port} where the program takes its port, for example: --port {port}",
            )
        return Command(tuple(arg.replace(PORT, str(port)) for arg in spec.args))

    def container(self, spec: LaunchSpec, base_dir: Path, key_file: str | None) -> ContainerCommand:
        """See `Engine.container`. Without an argv the image's own command runs; it has its port to itself,
        so it need not be told."""
        assert spec.container is not None, "resolve() gives every container spec its container"
        port = spec.container.port
        return ContainerCommand(tuple(arg.replace(PORT, str(port)) for arg in spec.args), port)

    def key_text(self, key: str) -> str:
        """See `Engine.key_text`. What the program could ask for is not known."""
        return ""

    def phase(self, line: str) -> str:
        """See `Engine.phase`."""
        return ""

    def first_request(self, spec: LaunchSpec) -> FirstRequest | None:
        """See `Engine.first_request`. A program with a task has the OpenAI paths: the router uses them."""
        return openai_request(spec)
