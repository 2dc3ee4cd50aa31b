"""Router and apply meet at one control socket, however each of them came to the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from servestate.planner.spec.site import Site
from servestate.runtime.workspace import open_workspace


@pytest.mark.parametrize("depth", [1, 3])
def test_one_folder_has_one_control_socket(
    depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path.joinpath(*["ü" * 20] * depth)
    folder.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(folder)
    found = {open_workspace(folder, Site()).control_path, open_workspace(link, Site()).control_path}
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found.add(open_workspace(Path(), Site()).control_path)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    found.add(open_workspace(Path(), Site()).control_path)
    assert len(found) == 1
    assert len(os.fsencode(found.pop())) <= 100
