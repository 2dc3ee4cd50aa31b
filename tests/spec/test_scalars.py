"""Plain scalars mean what the core schema says, less its traps; the pure parser reads the same as libyaml."""

import math
from typing import Any

import pytest
import yaml.loader

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.spec import yaml_text
from servestate.planner.spec.bundle import Document, load
from servestate.planner.spec.findings import Findings
from servestate.planner.spec.scalars import resolve
from servestate.planner.spec.yaml_text import Budget, read

from .cases import Case, every_case
from .test_fuzz import VALID

TRAPS = "yes no on off y n Yes ON 0123 0x1F 0o17 0b1 1_000 1:30 2024-01-01 = . -"


@pytest.mark.parametrize("text", TRAPS.split())
def test_yaml_1_1_traps_stay_text(text: str) -> None:
    assert resolve(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("", None), ("~", None), ("null", None), ("NULL", None), ("true", True), ("False", False)],
        *[("0", 0), ("-7", -7), ("+7", 7), ("1.10", 1.1), (".5", 0.5), ("1e3", 1000.0), ("-1.5E-2", -0.015)],
        *[
            ("tRue", "tRue"),
            ("1.2.3", "1.2.3"),
            ("1e", "1e"),
            ("127.0.0.1", "127.0.0.1"),
            ("9" * 18, 10**18 - 1),
        ],
    ],
)
def test_null_booleans_and_numbers(text: str, value: object) -> None:
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".inf", "-.inf", "+.INF", "1e309", "-1e9999"])
def test_numbers_that_json_cannot_hold_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        resolve(text)


def test_a_number_of_too_many_digits_is_never_infinite() -> None:
    value = resolve("1" * 30)
    assert isinstance(value, float)
    assert math.isfinite(value)


def tree(text: str) -> Any:
    findings = Findings(["f.yaml"])
    root = read(text, 0, findings, Budget())
    findings.check()
    return root


def test_values_of_every_style() -> None:
    assert tree("{a: 'yes', b: \"1\", c: !!str 1, d: !!int '2', f: !!float 3, 'g': [~, {}], 1: x}") == {
        "a": "yes",
        "b": "1",
        "c": "1",
        "d": 2,
        "f": 3.0,
        "g": [None, {}],
        "1": "x",
    }


def test_aliases_and_merges() -> None:
    text = (
        "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{y: 9}, *a]}\nd: *a\n'<<': z\n&k e: 1\nf: {*k : 2}\n"
    )
    assert tree(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"y": 3, "x": 1},
        "c": {"y": 9, "x": 1},
        "d": {"x": 1, "y": 2},
        "<<": "z",
        "e": 1,
        "f": {"e": 2},
    }


def test_an_anchor_may_be_used_again() -> None:
    assert tree("a: &x 1\nb: *x\nc: &x 2\nd: *x\n") == {"a": 1, "b": 1, "c": 2, "d": 2}


@pytest.fixture
def pure_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "_Parser", yaml.loader.BaseLoader)


@pytest.mark.usefixtures("pure_parser")
def test_without_libyaml_the_same_is_read() -> None:
    desired = load([Document("f.yaml", VALID)])
    assert [(e.spec.name, e.where.line, e.where.column) for e in desired.endpoints] == [
        ("multi-model", 15, 5),
        ("other", 30, 5),
    ]


@pytest.mark.usefixtures("pure_parser")
@pytest.mark.parametrize(
    "case", [case for group, case in every_case() if group == "yaml"], ids=lambda case: case.title
)
def test_without_libyaml_the_same_is_refused(case: Case) -> None:
    with pytest.raises(InvalidInput) as caught:
        case.run()
    codes = {line.split()[1] for line in case.found if line.startswith(("bad.yaml", "second.yaml"))}
    assert {finding.code for finding in caught.value.diagnostics} == codes
