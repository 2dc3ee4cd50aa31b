"""The example of `examples/clients`, run as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.harness import HERE, Server

SCRIPT = HERE.parent.parent / "examples" / "clients" / "clients.py"


def run(**more: str) -> str:
    """What the example prints."""
    environment = {**os.environ, **more}
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_client_gets_its_answers(server: Server) -> None:
    said = run(DATABRICKS_HOST=server.url, ENDPOINT="text")
    answer = "'one: The capital of France is'"
    assert f"current says: {answer}" in said
    assert f"current, asked past the split, says: {answer}" in said
    assert f"from-a-client, config 1, says: {answer}" in said
    assert said.count(f"text says: {answer}") == 2
    assert said.count(f"streamed in 6 parts: {answer}") == 2
    assert "from-a-client" not in server.names()


def test_clients_that_are_not_installed_are_skipped(tmp_path: Path) -> None:
    for module in ("databricks", "mlflow", "openai"):
        missing = f"raise ModuleNotFoundError('as if it were not there', name={module!r})"
        (tmp_path / f"{module}.py").write_text(missing)
    said = run(PYTHONPATH=str(tmp_path))
    assert [line.partition(",")[0] for line in said.splitlines() if line] == [
        f"{package}: skipped" for package in ("databricks-sdk", "mlflow-skinny", "openai")
    ]
