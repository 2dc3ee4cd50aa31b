"""Secrets through standard input, in the shells that images have. See test_secrets.py for real containers."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess

import pytest

from servestate.providers.docker import entry
from servestate.providers.docker.entry import Handover
from servestate.providers.protocol import PermanentError

SHELLS = [["/bin/sh"], ["busybox", "sh"], ["bash", "--posix"]]
NASTY = [
    "plain",
    " leading and trailing ",
    "two\nlines\n\n",
    "tab\tand\\back\\0101slash%s%b",
    "'\"$(date)`date`$HOME*",
    "ümlaut 🔑",
    "\udcff\udc80 not UTF-8",
    "-n",
    "",
    "x" * 20_000,
]


def run(shell, frames, folder, *argv):
    folder.mkdir(exist_ok=True)
    script = entry.SCRIPT.replace(entry.FOLDER, str(folder))
    return subprocess.run([*shell, "-c", script, "servestate", *argv], input=frames, capture_output=True)


def umask():
    return subprocess.run(["sh", "-c", "umask"], capture_output=True, check=True).stdout.strip()


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
def shell(request):
    if shutil.which(request.param[0]) is None:
        pytest.skip(f"no {request.param[0]} here")
    return request.param


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_every_value_arrives_as_it_is(shell, text, tmp_path):
    frames = entry.frames(Handover((("a-file", text),), (("A_NAME", text),)))
    done = run(shell, frames, tmp_path / "run", "printenv", "A_NAME")
    raw = os.fsencode(text)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == raw + b"\n"
    assert (tmp_path / "run" / "a-file").read_bytes() == raw


def test_the_files_are_for_the_engines_user_only_and_its_umask_stays(shell, tmp_path):
    frames = entry.frames(Handover((("a-file", "x"),)))
    done = run(shell, frames, tmp_path / "run", "sh", "-c", "umask; cat; env")
    assert done.stdout.split()[0] == umask()
    assert b"servestate" not in done.stdout.replace(os.fsencode(tmp_path), b"")
    assert stat.S_IMODE((tmp_path / "run" / "a-file").stat().st_mode) == 0o400


@pytest.mark.parametrize("cut", [0, 1, 10, 30])
def test_without_all_secrets_nothing_starts(shell, cut, tmp_path):
    frames = entry.frames(Handover((("a-file", "x"),), (("A_NAME", "y"),)))[:cut]
    done = run(shell, frames, tmp_path / "run", "echo", "started")
    assert done.returncode == entry.EXIT_CODE
    assert b"started" not in done.stdout
    assert b"cut off" in done.stderr


@pytest.mark.parametrize("name", ["A.B", "1A", "A-B", "", "A B", "Ä"])
def test_a_variable_that_no_shell_can_set_is_refused(name):
    with pytest.raises(PermanentError, match="SS503"):
        entry.frames(Handover(env=((name, "x"),)))


def test_nothing_shows_a_value():
    handover = Handover((("a-file", "canary"),), (("A_NAME", "canary"),))
    assert repr(handover) == "Handover(a-file, A_NAME)"
    assert not Handover()
