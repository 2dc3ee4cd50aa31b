"""`servestate token`: what it prints is a token that its lines let in."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import yaml

from servestate.planner.access import Right
from servestate.planner.spec.bundle import Document, load
from servestate.providers.engine_keys import EngineKeys
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.cli import main, parser
from servestate.runtime.keyring import keyring_of


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """The token and the YAML."""
    assert main(["token", *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    token, empty, text = said.out.split("\n", 2)
    assert empty == ""
    return token, text


def test_the_lines_let_the_token_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--service-principal", "ci: deploy #1", "--group", "on", "--group", "a, b", "--right", "apply")
    token, text = printed(capsys, *given, "--right", "view", "--right", "apply")
    assert re.fullmatch(r"ss_[A-Za-z0-9_-]{43}", token)
    assert token not in text
    access = load([Document("site.yaml", text)]).site.access
    (line,) = access.tokens
    assert line.sha256 == hashlib.sha256(token.encode()).hexdigest()
    ring = keyring_of(access, EngineKeys(tmp_path / "key", EnvSecrets({})))
    caller = ring.find(token.encode(), 0.0)
    assert caller is not None
    assert (caller.name, caller.kind) == ("ci: deploy #1", "service_principal_name")
    assert caller.groups == {"on", "a, b"}
    assert caller.rights == {Right.APPLY, Right.VIEW}
    assert ring.find(b"ss_another", 0.0) is None


def test_no_two_are_the_same_and_a_user_is_whoever_asks(capsys: pytest.CaptureFixture[str]) -> None:
    first, text = printed(capsys)
    second, _ = printed(capsys)
    assert first != second
    (line,) = yaml.safe_load(text)["servestate"]["access"]["tokens"]
    assert line.keys() == {"user_name", "sha256"}
    assert line["user_name"]


def test_every_right_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = printed(capsys, *(word for right in Right for word in ("--right", right)))
    (line,) = load([Document("site.yaml", text)]).site.access.tokens
    assert set(line.rights) == set(Right)


@pytest.mark.parametrize("name", ["", " ", "two\nlines"])
def test_names_that_no_access_rule_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--user", name]) == 64
    assert capsys.readouterr().out == ""


def test_a_token_is_one_persons() -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["token", "--user", "a", "--service-principal", "b"])
