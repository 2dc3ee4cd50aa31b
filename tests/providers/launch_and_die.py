"""Launches one instance of the test engine and kills itself on the way, as the arguments say.

Arguments: folder, lineage, engine script, and the place: `NAME.before`, `NAME.after` or `delay` (then it is
killed from outside).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import LaunchSpec
from servestate.providers import rundir, spawn
from servestate.providers.engine_keys import EngineKeys
from servestate.providers.ports import Ports
from servestate.providers.process import ProcessProvider
from servestate.providers.protocol import Marks
from servestate.providers.secrets import EnvSecrets

PLACES = {
    "clear": (rundir.Folder, "clear"),
    "reserve": (Ports, "reserve"),
    "spawn": (spawn, "_spawn"),
    "record": (rundir.Folder, "write_run"),
    "replace": (Path, "replace"),
    "word": (spawn.Errand, "line"),
    "answer": (spawn.json, "loads"),
    "prune": (rundir.RunDir, "prune"),
}


def die_at(name: str, when: str) -> None:
    owner, attribute = PLACES[name]
    real = getattr(owner, attribute)

    def dying(*args: object, **kwargs: object) -> object:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, dying)


async def main(folder: Path, lineage: str, engine: str, place: str) -> None:
    ports = Ports(registry=folder / "ports" / "registry")
    provider = ProcessProvider(
        folder / "run", folder, EngineKeys(folder / "engine.key", EnvSecrets({})), ports
    )
    argv = (sys.executable, "-I", "-S", engine, "--port", "{port}")
    marks = Marks(lineage, InstanceAddress("multi-model", "current", "3f9a1c27"), 7, "op")
    name, _, when = place.partition(".")
    if name in PLACES:
        die_at(name, when)
    print("go", flush=True)
    await provider.launch(LaunchSpec("process", "command", "tiny", args=argv), marks)
    print("launched", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:5]))
