"""Bad input gives findings: code, file:line:column, what was found, how to mend it. All of them, in order."""

import re
from collections import Counter

import pytest

from servestate.planner.diagnostics import Diagnostic, InvalidInput, Severity
from servestate.planner.spec.bundle import Document, load
from servestate.planner.spec.characters import shorten

from .cases import Case, every_case

CASES = every_case()


def findings(*texts: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(InvalidInput) as caught:
        load([Document(f"{number}.yaml", text) for number, text in enumerate(texts)])
    return caught.value.diagnostics


@pytest.mark.parametrize(("group", "case"), CASES, ids=[f"{group}: {case.title}" for group, case in CASES])
def test_bad_input_gives_the_findings_written_below_it(group: str, case: Case) -> None:
    assert case.outcome() == case.found


def test_there_are_many_cases_and_no_two_have_one_title() -> None:
    titles = Counter((group, case.title) for group, case in CASES)
    assert len(titles) == len(CASES) > 200


@pytest.mark.parametrize(("group", "case"), CASES, ids=[f"{group}: {case.title}" for group, case in CASES])
def test_every_error_has_a_place_and_a_fix_and_shows_no_secret(group: str, case: Case) -> None:
    with pytest.raises(InvalidInput) as caught:
        case.run()
    for found in caught.value.diagnostics:
        assert re.fullmatch(r"SS[12]\d\d", found.code)
        if found.severity is Severity.ERROR:
            assert len(found.fix) > 4
            assert found.where is not None or case.arguments
        assert "CANARY" not in str(found)
        assert "CANARY" not in repr(found)


def test_findings_stand_in_the_order_of_the_files() -> None:
    first = "servestate: {stat: x}\nbundle: {nam: y}\n"
    second = "resources: {model_serving_endpoints: {a: {nmae: a}, b: {name: 'b c'}}}\n"
    places = [(f.where.file, f.where.line, f.where.column) for f in findings(first, second) if f.where]
    assert places == sorted(places)
    assert {file for file, _, _ in places} == {"0.yaml", "1.yaml"}


def test_a_warning_of_many_places_is_given_once() -> None:
    entity = '{name: e, entity_name: m, entity_version: "1", scale_to_zero_enabled: true}'
    blocks = "\n".join(f"    e{i}: {{name: e{i}, config: {{served_entities: [{entity}]}}}}" for i in range(9))
    desired = load([Document("e.yaml", f"resources:\n  model_serving_endpoints:\n{blocks}\n")])
    (warning,) = desired.warnings
    assert warning.code == "SS141"
    assert warning.detail == "also at e.yaml:4:117, e.yaml:5:117, e.yaml:6:117 and 5 more"


def test_a_secret_is_never_shown_wherever_it_is_put() -> None:
    key = "CANARY-0123456789"
    for field in (
        f"openai_api_key_plaintext: {key}",
        f"openai_api_key: {key}",
        f"openai_api_kee: {key}",
        key,
    ):
        for wrap in ("openai_config: {{{}}}", "openai_config: [{}]", "palm_config: {{palm_api_key: {}}}"):
            text = wrap.format(field if "palm" not in wrap else key)
            model = f"{{name: m, provider: openai, task: llm/v1/chat, {text}}}"
            entities = f"[{{name: e, external_model: {model}}}]"
            block = f"{{name: a, config: {{served_entities: {entities}}}}}"
            found = findings(f"resources: {{model_serving_endpoints: {{a: {block}}}}}")
            shown = [str(f) for f in found if "is not known" not in f.what]
            assert "CANARY" not in "".join(shown)


def test_terminal_escapes_in_names_and_keys_are_made_visible() -> None:
    text = 'resources: {model_serving_endpoints: {"k\\e[2J": {name: "\\e[31mred\\a", "\\e]0;x": 1}}}'
    for found in findings(text):
        assert "\x1b" not in str(found)
        assert found.where is not None
        assert "\x1b" not in found.where.key


def test_shorten_keeps_messages_on_one_line() -> None:
    assert shorten("a\nb") == "a\\u000ab"
    assert shorten("x" * 100) == "x" * 59 + "…"
    assert shorten("plain") == "plain"
