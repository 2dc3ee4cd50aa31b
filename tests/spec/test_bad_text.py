"""Text that is no text, and YAML that grows: refused with a place, in bounded time and memory."""

import time
from collections.abc import Callable

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.spec.bundle import Document, load

SECONDS = 4.0
"""Twice the bound of one load, for slow machines."""

INVISIBLE = "SS151 the file contains the invisible character "
ENDPOINTS = "resources:\n  model_serving_endpoints:\n"


def first_line(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        load([Document("f.yaml", text)])
    return str(caught.value).splitlines()[0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\x00b: 1", "1:2: {}U+0000 (a control character)"),
        ("a: \x1b[2J", "1:4: {}U+001B (a control character)"),
        ("a: 1\nb: \x7f", "2:4: {}U+007F (a control character)"),
        ("# \u202e\nb: 1", "1:3: {}U+202E (RIGHT-TO-LEFT OVERRIDE)"),
        ("n: a\u2066b", "1:5: {}U+2066 (LEFT-TO-RIGHT ISOLATE)"),
        ("a: \udcff", "1:4: SS151 the file contains bytes that are not UTF-8"),
        ("a: \ud800\udc00", "1:4: SS151 the file contains bytes that are not UTF-8"),
        ("a:\n  \ufeffb: 1", "2:3: {}U+FEFF (ZERO WIDTH NO-BREAK SPACE)"),
        ("a: \uffff", "1:4: {}U+FFFF (a control character)"),
        ("\ta: 1", "1:1: SS150 a tab is used for indentation"),
        ('"', "1:1: SS150 a quote is opened and not closed"),
        ("a: [", "2:1: SS150 a value is missing, or a [ or { is not closed"),
        ("? []", "1:3: SS157 a key is not text"),
        ("x", "1:1: SS157 the file is not a mapping of keys to values"),
        ("[" * 100_000, "1:65: SS155 mappings and lists are nested deeper than 64 levels"),
        ("{a: " * 100_000, "1:257: SS155 mappings and lists are nested deeper than 64 levels"),
        ("- " * 100_000, "1:129: SS155 mappings and lists are nested deeper than 64 levels"),
        ("? " * 100_000, "1:129: SS155 mappings and lists are nested deeper than 64 levels"),
        ("a: &a [*a]", '1:8: SS154 the alias "*a" contains itself'),
        ("a: &a {<<: *a}", '1:12: SS154 the alias "*a" contains itself'),
        ("x" * 9_000_000, "1:1: SS155 the file has 9,000,000 characters; 8,388,608 is the most that is read"),
    ],
    ids=range(21),
)
def test_text_that_cannot_be_read(text: str, line: str) -> None:
    assert first_line(text) == "f.yaml:" + line.replace("{}", INVISIBLE)


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# nothing\n", "---\n", "null\n", "{}\n", "\ufeff{}", "---\n...\n"]
)
def test_an_empty_file_asks_for_nothing(text: str) -> None:
    desired = load([Document("f.yaml", text)])
    assert (desired.bundle, desired.endpoints, desired.warnings) == ("default", (), ())


def test_no_file_at_all_asks_for_nothing() -> None:
    assert load([]).endpoints == ()


def _laughs() -> str:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    return "\n".join(lines)


def _laughing_variables(text: bool) -> str:
    lines = ["variables:", "  v0: {default: hahahahaha}"]
    for i in range(1, 30):
        references = [f"${{var.v{i - 1}}}"] * 10
        value = (
            '"' + "".join(references) + '"' if text else "[" + ", ".join(f'"{r}"' for r in references) + "]"
        )
        lines.append(f"  v{i}: {{default: {value}}}")
    return "\n".join(lines) + '\nresources: {model_serving_endpoints: {a: {name: "${var.v29}"}}}'


def _chain() -> str:
    links = "".join(f'  v{i}: {{default: "${{var.v{i + 1}}}"}}\n' for i in range(20_000))
    return f"variables:\n{links}resources: {{model_serving_endpoints: {{a: {{name: '${{var.v0}}'}}}}}}"


def _merges() -> str:
    keys = ", ".join(f"k{i}: 1" for i in range(5000))
    return f"a: &a {{{keys}}}\n" + "".join(f"b{i}: {{<<: *a}}\n" for i in range(5000))


GROWING: dict[str, Callable[[], str]] = {
    "aliases of aliases": _laughs,
    "variables in variables, text": lambda: _laughing_variables(text=True),
    "variables in variables, lists": lambda: _laughing_variables(text=False),
    "a chain of variables": _chain,
    "merges of a large mapping": _merges,
    "one key over and over": lambda: "a: 1\n" * 1_600_000,
    "many unknown keys": lambda: "".join(f"k{i}: 1\n" for i in range(600_000)),
    "many bad endpoints": lambda: ENDPOINTS + "".join(f"    k{i}: {{nam: x}}\n" for i in range(90_000)),
    "many endpoints of one name": lambda: (
        ENDPOINTS + "".join(f"    k{i}: {{name: x}}\n" for i in range(90_000))
    ),
    "a long list": lambda: ENDPOINTS + f"    a: {{name: x, tags: [{'1,' * 3_000_000}]}}",
    "a list of wrong items": lambda: ENDPOINTS + f"    a: {{name: x, tags: [{'1,' * 400_000}]}}",
    "a long name": lambda: ENDPOINTS + f"    a: {{name: {'x' * 8_000_000}}}",
    "a long escape": lambda: 'a: "' + "\\n" * 4_000_000,
    "open brackets": lambda: "{" * 1_000_000,
    "anchors": lambda: "&a " * 2_000_000,
    "dashes": lambda: "-\n" * 4_000_000,
    "colons": lambda: ": " * 4_000_000,
    "open references": lambda: ENDPOINTS + f"    a: {{name: '{'${var.' * 500_000}'}}",
    "closed references": lambda: ENDPOINTS + f"    a: {{name: '{'${var.x}' * 500_000}'}}",
    "direction marks": lambda: "\u202e" * 8_000_000,
}


@pytest.mark.parametrize("name", GROWING)
def test_what_grows_is_refused_in_time(name: str) -> None:
    text = GROWING[name]()
    start = time.process_time()
    first_line(text)
    assert time.process_time() - start < SECONDS


def test_reading_stops_after_many_errors_and_says_so() -> None:
    with pytest.raises(InvalidInput) as caught:
        load([Document("f.yaml", "".join(f"k{i}: 1\n" for i in range(5000)))])
    assert len(caught.value.diagnostics) == 501
    assert str(caught.value.diagnostics[-1]).startswith("SS100 stopped after 500 errors")


def test_more_files_than_places_can_name() -> None:
    with pytest.raises(InvalidInput) as caught:
        load([Document("f.yaml", "")] * 70_000)
    assert str(caught.value).startswith("SS155 there are 70,000 files")
