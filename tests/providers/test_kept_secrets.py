"""Secrets that requests bring along: taken out of what is kept and shown, there for whoever needs them."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.providers import kept_secrets
from servestate.providers.kept_secrets import SCOPE, KeptSecrets, keep, refers, taken_out, without_kept
from servestate.providers.protocol import PermanentError
from servestate.providers.secrets import EnvSecrets, fill

BODY: dict[str, Any] = {
    "name": "far",
    "config": {
        "served_entities": [
            {"external_model": {"openai_config": {"openai_api_key_plaintext": "sk-CANARY-1", "x": "y"}}},
            {"external_model": {"custom_provider_config": {"token_plaintext": "sk-CANARY-2"}}},
            {"environment_vars": {"TOKEN": "{{secrets/mine/token}}"}},
        ]
    },
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "api-secrets.json"


def backend(path: Path, **environ: str) -> KeptSecrets:
    return KeptSecrets(path, EnvSecrets(environ))


def test_every_secret_is_taken_out_wherever_it_stands() -> None:
    body, secrets = taken_out(BODY)
    assert sorted(secrets.values()) == ["sk-CANARY-1", "sk-CANARY-2"]
    assert "CANARY" not in json.dumps(body)
    first, second, third = body["config"]["served_entities"]
    reference = first["external_model"]["openai_config"].pop("openai_api_key")
    assert re.fullmatch(r"\{\{secrets/servestate-api/[0-9a-f]{32}\}\}", reference)
    assert first["external_model"]["openai_config"] == {"x": "y"}
    assert second["external_model"]["custom_provider_config"].keys() == {"token"}
    assert third == BODY["config"]["served_entities"][2]


def test_what_was_given_is_left_as_it_was() -> None:
    before = json.dumps(BODY)
    taken_out(BODY)
    assert json.dumps(BODY) == before


def test_no_two_requests_get_the_same_name_for_the_same_secret() -> None:
    assert not taken_out(BODY)[1].keys() & taken_out(BODY)[1].keys()


def test_both_spellings_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="give key or key_plaintext, not both") as caught:
        taken_out({"a": [{"key": "{{secrets/a/b}}", "key_plaintext": "sk-CANARY"}]})
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("empty", [None, "", {}, [], 7])
def test_what_is_no_text_is_no_secret(empty: Any) -> None:
    assert taken_out({"key_plaintext": empty}) == ({"key_plaintext": empty}, {})


def test_an_empty_reference_beside_a_secret_is_not_given() -> None:
    body, secrets = taken_out({"key": "", "key_plaintext": "sk"})
    assert list(secrets.values()) == ["sk"]
    assert refers(body["key"]) or refers(body)


VALUES = st.recursive(
    st.none() | st.integers() | st.text("ab{}", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b_plaintext", "c", "d_plaintext"]), inner, max_size=3)
    ),
)


@given(VALUES)
def test_a_body_with_its_secrets_put_back_is_the_body(value: Any) -> None:
    body, secrets = taken_out(value)

    def put_back(part: Any) -> Any:
        if isinstance(part, list):
            return [put_back(item) for item in part]
        if not isinstance(part, dict):
            return part
        made = {}
        for key, below in part.items():
            name = _name_in(below)
            made[f"{key}_plaintext" if name else key] = secrets[name] if name else put_back(below)
        return made

    assert put_back(body) == value
    assert (without_kept(body) != body) == bool(secrets)


def _name_in(value: Any) -> str:
    found = re.fullmatch(r"\{\{secrets/servestate-api/(.*)\}\}", value) if isinstance(value, str) else None
    return found[1] if found else ""


# The file.


def test_what_was_kept_is_found_by_its_reference(path: Path) -> None:
    body, secrets = taken_out(BODY)
    keep(path, secrets)
    config = body["config"]["served_entities"][0]["external_model"]["openai_config"]
    assert fill(config["openai_api_key"], backend(path)).reveal() == "sk-CANARY-1"


def test_the_file_is_this_users_alone(path: Path) -> None:
    keep(path, {"a": "sk"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keep(path, {"b": "sk"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]


def test_without_a_secret_there_is_no_file(path: Path) -> None:
    keep(path, {})
    assert not path.exists()
    assert kept_secrets.read(path) == {}


def test_those_of_many_requests_at_once_are_all_kept(path: Path) -> None:
    threads = [threading.Thread(target=keep, args=(path, {f"k{n}": f"v{n}"})) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept_secrets.read(path) == {f"k{n}": f"v{n}" for n in range(16)}


def test_only_what_nobody_refers_to_is_forgotten(path: Path) -> None:
    keep(path, {"aaaa": "1", "bbbb": "2"})
    kept_secrets.forget(path, 'a block with "{{secrets/servestate-api/bbbb}}" in it')
    assert kept_secrets.read(path) == {"bbbb": "2"}
    with pytest.raises(PermanentError, match="not kept here any more") as caught:
        backend(path).get(SCOPE, "aaaa")
    assert caught.value.code == "SS517"


def test_forgetting_nothing_writes_nothing(path: Path) -> None:
    keep(path, {"aaaa": "1"})
    before = path.stat().st_ino
    kept_secrets.forget(path, "aaaa")
    assert path.stat().st_ino == before


def test_all_other_scopes_are_somebody_elses(path: Path) -> None:
    secrets = backend(path, SERVESTATE_SECRET_MINE__TOKEN="theirs")
    assert secrets.get("mine", "token").reveal() == "theirs"


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_torn_file_is_said_and_not_taken_for_empty(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text, "latin-1")
    with pytest.raises(PermanentError, match="cannot be read") as caught:
        backend(path).get(SCOPE, "aaaa")
    assert caught.value.code == "SS517"


def test_nobody_sees_half_a_file(path: Path) -> None:
    keep(path, {f"k{n}": "x" * 100 for n in range(100)})
    ended = threading.Event()

    def write() -> None:
        for number in range(50):
            keep(path, {"k0": f"{number}"})
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not ended.is_set():
        assert len(kept_secrets.read(path)) == 100
    thread.join()


# Replies.


@pytest.mark.parametrize(
    "text",
    [
        "{{secrets/servestate-api/aaaa}}",
        "{{ secrets/servestate-api/aaaa }}",
        "{{SECRETS/Servestate-API/aaaa}}",
        "Bearer {{secrets/servestate-api/aaaa}}",
    ],
)
def test_a_reference_is_known_however_it_is_spelt(text: str) -> None:
    assert refers({"a": [{"b": text}]})
    assert without_kept({"keep": 1, "b": text}) == {"keep": 1}


@pytest.mark.parametrize("text", ["{{secrets/mine/servestate-api}}", "servestate-api/aaaa", ""])
def test_nothing_else_is_one(text: str) -> None:
    assert not refers({"a": [text]})
    assert without_kept({"b": text}) == {"b": text}


def test_a_reply_has_neither_the_secret_nor_where_it_is() -> None:
    body, _ = taken_out(BODY)
    shown = without_kept(body)
    assert not refers(shown)
    assert "CANARY" not in json.dumps(shown)
    entities = shown["config"]["served_entities"]
    assert entities[0] == {"external_model": {"openai_config": {"x": "y"}}}
    assert entities[2] == BODY["config"]["served_entities"][2]


def test_what_was_empty_before_stays() -> None:
    assert without_kept({"a": {}, "b": [{}]}) == {"a": {}, "b": [{}]}
