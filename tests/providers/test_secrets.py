"""Secret values are shown by nothing but `reveal()`."""

from __future__ import annotations

import copy
import pickle

import pytest

from servestate.providers.protocol import PermanentError
from servestate.providers.secrets import EnvSecrets, Mask, Secret, fill, references, variable_name

BACKEND = EnvSecrets({"SERVESTATE_SECRET_MY_SCOPE__OPENAI_API_KEY": "sk-1", "SERVESTATE_SECRET_S__EMPTY": ""})


def test_a_secret_shows_its_value_only_when_asked():
    secret = Secret("sk-1")
    assert {repr(secret), str(secret), f"{secret}", f"{secret!s:>9}".strip()} == {"Secret(***)"}
    assert secret.reveal() == "sk-1"
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copying(secret)


def test_references_are_found_and_filled():
    text = "Bearer {{secrets/my_scope/openai_api_key}} {{ secrets/my_scope/openai_api_key }}"
    assert references(text) == [("my_scope", "openai_api_key")] * 2
    assert fill(text, BACKEND).reveal() == "Bearer sk-1 sk-1"
    assert fill("{{secrets/none}} {{x}}", BACKEND).reveal() == "{{secrets/none}} {{x}}"


def test_the_variable_of_a_reference_is_upper_case_with_underscores():
    assert variable_name("my-scope", "open.ai key") == "SERVESTATE_SECRET_MY_SCOPE__OPEN_AI_KEY"


@pytest.mark.parametrize("key", ["missing", "empty"])
def test_a_missing_or_empty_secret_names_the_variable_to_set(key):
    with pytest.raises(PermanentError, match="SS501") as caught:
        fill(f"{{{{secrets/s/{key}}}}}", BACKEND)
    assert variable_name("s", key) in caught.value.fix


def test_a_mask_hides_the_longest_value_first_and_never_shows_one():
    mask = Mask()
    mask.add(["abc", "abcdef"])
    assert mask.hide("abcdef abc xyz") == "*** *** xyz"
    assert "abc" not in repr(mask)
