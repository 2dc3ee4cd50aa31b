"""What libyaml says about broken YAML, in the words of the person who has to mend it."""

from __future__ import annotations

import re

from yaml.error import Mark, MarkedYAMLError, YAMLError

from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import pack

_HINTS: tuple[tuple[str, str, str], ...] = (
    # what libyaml's problem or context matches, what is wrong, how to mend it
    (r"tab character|cannot start any token: tab", "a tab is used for indentation", "indent with spaces"),
    (
        r"cannot start any token",
        "a value starts with a character that has a meaning in YAML (@ ` % and the like)",
        "put the value in quotes",
    ),
    (
        r"mapping values are not allowed",
        "a colon stands where no key can be",
        'check the indentation of this line, or put text that contains ": " in quotes',
    ),
    (
        r"could not find expected ':'",
        "a key has no colon",
        'write "key: value"; text over several lines needs a | or quotes',
    ),
    (r"while scanning a quoted scalar", "a quote is opened and not closed", "close the quote"),
    (
        r"while parsing a flow sequence",
        "a [ is not closed, or a comma is missing",
        "close it with ], or add the comma",
    ),
    (
        r"while parsing a flow mapping",
        "a { is not closed, or a comma is missing",
        "close it with }, or add the comma; text that holds { or } needs quotes",
    ),
    (r"flow node", "a value is missing, or a [ or { is not closed", "write the value, or close the bracket"),
    (
        r"unknown escape",
        "a backslash in double quotes starts no known escape",
        "use single quotes, or double the \\",
    ),
    (
        r"expected hexdecimal|invalid Unicode",
        "an escape such as \\u200E is incomplete",
        "write all its digits",
    ),
    (
        r"block sequence entries are not allowed|expected '-' indicator",
        "a list item stands where no list can be",
        "start the list on a line of its own and indent all its items equally",
    ),
    (
        r"did not find expected key|expected <block end>",
        "the indentation does not fit the lines before",
        "indent all keys of a mapping equally",
    ),
    (r"document start", "there is text after the end of the document", "keep one document per file"),
    (
        r"directive|incompatible YAML|%",
        "a %-directive is not understood",
        "delete the line that starts with %",
    ),
    (
        r"while (scanning|parsing) a(n)? (tag|anchor|alias)|tag handle",
        "a !, & or * is misused",
        "put the value in quotes",
    ),
    (
        r"block scalar",
        "a text block (| or >) has a wrong header or indentation",
        "indent its lines with spaces, equally",
    ),
)


def explain(error: YAMLError, text: str, number: int, findings: Findings) -> None:
    """Note that document `number` is not YAML. The text itself is never quoted: it may hold a secret."""
    if not isinstance(error, MarkedYAMLError):
        findings.error(
            "SS151", "the file contains a character that YAML does not allow", "delete it", pack(number, 0, 0)
        )
        return
    problem = f"{error.context or ''}; {error.problem or ''}"
    mark = error.problem_mark
    if mark is not None and _char_at(text, mark) == "\t":
        problem += ": tab" if "cannot start any token" in problem else ""
    what, fix = next(
        ((what, fix) for pattern, what, fix in _HINTS if re.search(pattern, problem)),
        ("the text is not valid YAML", "check the indentation, quotes and brackets of this line"),
    )
    findings.error("SS150", what, fix, _mark(error, number), detail=_detail(error, number, findings))


def _char_at(text: str, mark: Mark) -> str:
    lines = text.split("\n", mark.line + 1)
    line = lines[mark.line] if mark.line < len(lines) else ""
    return line[mark.column : mark.column + 1]


def _opened(error: MarkedYAMLError) -> Mark | None:
    """Where the thing that has no end began: its end is often the end of the file, where nothing is wrong."""
    context = error.context or ""
    return error.context_mark if re.search("quoted scalar|flow ", context) else None


def _mark(error: MarkedYAMLError, number: int) -> int:
    mark = _opened(error) or error.problem_mark or error.context_mark
    return pack(number, mark.line, mark.column) if mark else pack(number, 0, 0)


def _detail(error: MarkedYAMLError, number: int, findings: Findings) -> str:
    noticed = error.problem_mark
    if noticed is None or _opened(error) is None:
        return ""
    return f"noticed at {findings.names[number]}:{noticed.line + 1}:{noticed.column + 1}"
