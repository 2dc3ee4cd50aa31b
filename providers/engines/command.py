"""The engine `command`: any program that serves HTTP on the port it is told."""

from __future__ import annotations

from pathlib import Path

from servestate.planner.launch import LaunchSpec
from servestate.providers.engines.engine import Command
from servestate.providers.protocol import PermanentError

PORT = "{port}"


class CommandEngine:
    """The spec's args are the whole argv; `{port}` in any of them becomes the port."""

    def command(self, spec: LaunchSpec, port: int, base_dir: Path) -> Command:
        """See `Engine.command`. An argv without `{port}` is refused: two instances would fight for one
        port, and neither could be told from a stranger that already has it."""
        if not any(PORT in arg for arg in spec.args):
            raise PermanentError(
                "SS503",
                f'the command of model "{spec.model}" never names its port',
                "write {port} where the program takes its port, for example: --port {port}",
            )
        return Command(tuple(arg.replace(PORT, str(port)) for arg in spec.args), spec.health_path)
