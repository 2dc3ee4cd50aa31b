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
    site = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    built = subprocess.run(
        [sys.executable, *install, "--target", str(site), str(tmp_path)],
        env={**os.environ, "SERVESTATE_COMPILE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    compiled = {path.name.partition(".")[0] for path in (site / "servestate" / "runtime").rglob("*.so")}
    assert len(compiled) >= 20
    assert {"proxy", "windows", "_scan"} <= compiled, "by mypyc, by Cython, from C"
    found = str(site)
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
    assert origin.stdout.startswith(str(site))
    command = [str(site / "bin" / "servestate"), "--version"]
    assert subprocess.run(command, cwd=tmp_path, env=environment).returncode == 0
