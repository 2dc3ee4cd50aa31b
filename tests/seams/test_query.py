"""`servestate query` shows whatever a model answers."""

from __future__ import annotations

import pytest

from servestate.runtime.cli.query import _streamed, _text_of


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("not JSON", "not JSON"),
        ("[1]", "[\n  1\n]"),
        ('{"choices": [{"message": {"content": ""}}]}', ""),
        ('{"choices": [{"text": "a"}]}', "a"),
        (
            '{"choices": [{"message": null}]}',
            '{\n  "choices": [\n    {\n      "message": null\n    }\n  ]\n}',
        ),
        ('{"choices": {}}', '{\n  "choices": {}\n}'),
    ],
)
def test_any_answer_can_be_shown(answer: str, shown: str) -> None:
    assert _text_of(answer) == shown


def test_any_stream_can_be_shown() -> None:
    lines = [": hello", 'data: {"choices": [{"delta": {"content": "a"}}]}', "data: nonsense", "data: [1]"]
    lines += ['data: {"choices": [{"delta": null}]}', 'data:{"choices": [{"text": "b"}]}', "data: [DONE]"]
    assert "".join(_streamed(iter(lines))) == "ab"
