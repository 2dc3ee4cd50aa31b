"""Tokens: who carries which, until when, and what the file that the router reads gives away."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.access import ANONYMOUS, Caller, Kind, Right
from servestate.planner.spec.site import Access
from servestate.providers.engine_keys import EngineKeys
from servestate.providers.protocol import PermanentError
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.keyring import Keyring, keyring_of, read_keyring, write_keyring

EXPIRY = "2026-06-01T02:00:00+02:00"
NOW = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
ANN, ROBOT = b"dapi-ann-CANARY", b"dapi-robot-CANARY"
SECRETS = {"SERVESTATE_SECRET_ACCESS__ROBOT": ROBOT.decode()}
TOKENS: list[dict[str, Any]] = [
    {
        "user_name": "ann@example.com",
        "groups": ["search", "ops"],
        "rights": ["view", "create"],
        "sha256": hashlib.sha256(ANN).hexdigest(),
    },
    {"service_principal_name": "7f3a", "secret": "{{secrets/access/robot}}", "rights": ["admin"]},
]


def keyring(folder: Path, tokens: list[dict[str, Any]] = TOKENS, **more: Any) -> Keyring:
    access = Access.model_validate({"tokens": tokens, **more})
    return keyring_of(access, EngineKeys(folder / "engine.key", EnvSecrets(SECRETS)))


def test_a_token_is_its_bearers(tmp_path: Path) -> None:
    found = keyring(tmp_path)
    assert found.find(ANN, NOW) == Caller(
        "ann@example.com", Kind.USER, frozenset({"search", "ops"}), frozenset({Right.VIEW, Right.CREATE})
    )
    assert found.find(ROBOT, NOW) == Caller("7f3a", Kind.SERVICE_PRINCIPAL, rights=frozenset({Right.ADMIN}))


@pytest.mark.parametrize(
    "token", [b"", b"dapi", ANN + b" ", ANN[:-1], ANN.upper(), hashlib.sha256(ANN).hexdigest().encode()]
)
def test_nothing_else_is_a_token(tmp_path: Path, token: bytes) -> None:
    assert keyring(tmp_path).find(token, NOW) is None


def test_a_digest_of_the_file_is_no_token(tmp_path: Path) -> None:
    found = keyring(tmp_path)
    assert all(found.find(digest.encode(), NOW) is None for digest in found.entries)


@pytest.mark.parametrize(("at", "known"), [(NOW - 0.001, True), (NOW, False), (NOW + 1, False)])
def test_a_token_ends_when_it_says(tmp_path: Path, at: float, known: bool) -> None:
    found = keyring(tmp_path, [{**TOKENS[0], "expires": EXPIRY}])
    assert (found.find(ANN, at) is not None) is known


def test_without_tokens_everybody_may_everything_but_apply(tmp_path: Path) -> None:
    found = keyring(tmp_path, [])
    assert found.open
    caller = found.find(b"", NOW)
    assert caller is not None
    assert (caller.name, caller.token) == (ANONYMOUS, "")
    assert {right for right in Right if not caller.may(right)} == {Right.APPLY, Right.ADMIN}


def test_without_tokens_one_that_comes_along_tells_callers_apart(tmp_path: Path) -> None:
    found = keyring(tmp_path, [])
    first, again, other = (found.find(token, NOW) for token in (ANN, ANN, ROBOT))
    assert first is not None
    assert other is not None
    assert first == again
    assert first.token != other.token
    assert "CANARY" not in first.token


def test_with_tokens_it_is_not_open(tmp_path: Path) -> None:
    assert not keyring(tmp_path).open


def test_a_secret_that_is_not_there_stops_it(tmp_path: Path) -> None:
    missing = {"user_name": "x", "secret": "{{secrets/access/nobody}}"}
    with pytest.raises(PermanentError, match="access/nobody"):
        keyring(tmp_path, [missing])


# The file.


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = keyring(tmp_path, [{**TOKENS[0], "expires": EXPIRY}, TOKENS[1]], hosts=["Models.example.com"])
    write_keyring(tmp_path / "access.json", made)
    read = read_keyring(tmp_path / "access.json")
    assert read == made
    assert read.hosts == {"models.example.com"}
    assert read.find(ANN, NOW - 1) == made.find(ANN, NOW - 1) is not None
    assert read.find(ANN, NOW) is None


def test_another_process_of_the_site_has_the_same_digests(tmp_path: Path) -> None:
    """Or callers without a token of their own would change with every restart."""
    assert keyring(tmp_path) == keyring(tmp_path)
    (tmp_path / "other").mkdir()
    assert not keyring(tmp_path).entries.keys() & keyring(tmp_path / "other").entries.keys()


def test_the_file_holds_no_token_and_nothing_that_finds_one(tmp_path: Path) -> None:
    path = tmp_path / "access.json"
    write_keyring(path, keyring(tmp_path))
    text = path.read_text()
    for token in (ANN, ROBOT):
        assert token.decode() not in text
        assert hashlib.sha256(token).hexdigest() not in text  # which a list of likely tokens would match
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_process_shows_its_key(tmp_path: Path) -> None:
    found = keyring(tmp_path)
    assert repr(found.key) not in repr(found)
    assert found.key.hex() not in repr(found)


def test_a_torn_file_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "access.json"
    write_keyring(path, keyring(tmp_path))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError):  # noqa: PT011  # of JSON, or ours: every one of them counts
            read_keyring(path)


@pytest.mark.parametrize("key", ["format_version", "key", "entries", "hosts"])
@pytest.mark.parametrize("value", [None, 7, "zz", [[]], {"a": 1}])
def test_a_damaged_file_lets_nobody_in(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "access.json"
    write_keyring(path, keyring(tmp_path))
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    try:
        read = read_keyring(path)
    except ValueError:
        return
    # What can still be read has the very tokens and the very key that were written.
    assert (read.entries, read.key) == (keyring(tmp_path).entries, keyring(tmp_path).key)


def test_a_file_that_is_not_there_lets_nobody_in(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"access\.json"):
        read_keyring(tmp_path / "access.json")


def test_replacing_the_file_never_leaves_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "access.json"
    write_keyring(path, keyring(tmp_path))
    first = path.stat().st_ino
    write_keyring(path, keyring(tmp_path, []))
    assert path.stat().st_ino != first  # renamed into place
    assert {name for name in os.listdir(tmp_path) if "access" in name} == {"access.json"}


@given(st.binary(max_size=40))
def test_any_bytes_can_be_asked_for(token: bytes) -> None:
    found = Keyring(b"key", {})
    caller = found.find(token, NOW)
    assert caller is not None
    assert bool(caller.token) is bool(token)
