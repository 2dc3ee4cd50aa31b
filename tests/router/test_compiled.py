"""The router compiled: the same source, and the same answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_compiled_router_passes_the_same_tests(tmp_path: Path) -> None:
    """All quick tests of the router, less the negative controls: they take a defence out of a class, which is
    not to be had of machine code."""
    for name in ("planner", "providers", "runtime", ".typing"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    built = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={**os.environ, "SERVESTATE_COMPILE": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    compiled = list((tmp_path / "runtime" / "router").rglob("*.so"))
    assert len(compiled) >= 20
    found = os.pathsep.join((str(tmp_path / ".typing"), str(tmp_path)))
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "-k", "not notices", "tests/router"]
    environment = {**os.environ, "PYTHONPATH": found}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-8000:]
    origin = subprocess.run(
        [sys.executable, "-c", "import servestate.runtime.router.proxy as p; print(p.__file__)"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert origin.stdout.strip().endswith(".so"), "the tests ran on what was compiled"
