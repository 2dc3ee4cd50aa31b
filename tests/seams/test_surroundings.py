"""Surroundings that a person never sees and a pipeline has: no user, no streams, no encoding."""

from __future__ import annotations

import os
import subprocess

import pytest

from servestate.runtime import workspace
from tests.cli.harness import CLI, Site, remote

EXTERNAL = {"solo": {"only": remote()}}


@pytest.fixture
def planned(site: Site) -> Site:
    """A site whose apply starts no process."""
    site.configure(EXTERNAL)
    return site


def shell(site: Site, command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`command` in the site's folder, `$S` being the command line."""
    env = {**os.environ, "S": CLI[0], **env}
    return subprocess.run(
        ["sh", "-c", command], cwd=site.folder, env=env, capture_output=True, text=True, check=False
    )


def test_a_user_id_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(workspace.getpass, "getuser", nameless)
    assert workspace.owner_of_this_process("apply").person == f"uid {os.getuid()}"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(planned: Site, closed: str) -> None:
    ended = shell(planned, f"$S plan --detailed-exitcode {closed}")
    assert ended.returncode == 2, ended.stderr
    refused = shell(planned, f"$S apply {closed}")
    assert refused.returncode == 64, refused.stderr
    assert "Traceback" not in ended.stderr + refused.stderr


@pytest.mark.parametrize(
    "encoding",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}],
)
def test_an_encoding_that_lacks_characters(planned: Site, encoding: dict[str, str]) -> None:
    text = (planned.folder / "endpoints.yaml").read_text()
    planned.write(text.replace("name: solo", "name: solo\n      description: häuslich", 1))
    ended = shell(planned, "$S plan --out plan.json && $S show --json plan.json", **encoding)
    assert ended.returncode == 0, ended.stderr
    assert "häuslich" in (planned.folder / "plan.json").read_text(encoding="utf-8")
    assert shell(planned, "$S apply plan.json", **encoding).returncode == 0
