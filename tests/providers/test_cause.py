"""How an engine ended, in words."""

from __future__ import annotations

import pytest

from servestate.providers.cause import how_it_ended, likely_cause, with_log

KILLED = "killed from outside, often for want of memory"


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("OSError: [Errno 98] Address already in use", "the port is taken"),
        ("ModuleNotFoundError: No module named 'vllm'", "the Python module vllm is missing"),
        ("CUDA out of memory. Tried to allocate 2 GiB", "out of memory"),
        ("error: unrecognized arguments: -x", "the engine does not know these arguments: -x"),
        ("srv load_model: failed to load model, 'm.gguf'", "the model could not be loaded"),
        ("bye", ""),
    ],
)
def test_the_log_tells_the_likely_cause(line, cause):
    assert likely_cause(1, None, ["starting", line, "stopping"]) == cause


@pytest.mark.parametrize(
    ("code", "number", "ended", "cause"),
    [
        (0, None, "exit code 0", ""),
        (None, 9, "signal 9 (SIGKILL)", KILLED),
        (137, None, "exit code 137 (a child died of SIGKILL)", KILLED),
        (None, 11, "signal 11 (SIGSEGV)", "it crashed"),
        (None, 99, "signal 99 (signal 99)", ""),
        (255, None, "exit code 255 (a child died of signal 127)", ""),
    ],
)
def test_the_end_and_its_likely_cause(code, number, ended, cause):
    assert how_it_ended(code, number) == ended
    assert likely_cause(code, number, ["hello"]) == cause


def test_the_newest_line_that_tells_something_wins():
    assert likely_cause(1, None, ["out of memory", "Address already in use", "bye"]) == "the port is taken"


def test_log_lines_stand_below_the_headline():
    assert with_log("exit code 1", ["a", "", "b ", "c"], 2) == "exit code 1\n| b\n| c"
    assert with_log("exit code 1", [], 2) == "exit code 1"
