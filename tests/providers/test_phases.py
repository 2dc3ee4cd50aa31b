"""What a starting engine is doing, by its log. The excerpts have the form of real starts."""

from __future__ import annotations

import pytest

from servestate.providers import phases
from servestate.providers.engines import ENGINES, engine_for

PREFIX = "(EngineCore_DP0 pid=71) INFO 11-22 10:00:00 "
VLLM = [
    ("[gpu_model_runner.py:5040] Starting to load model org/model...", "loading the model"),
    (
        "[weight_utils.py:1] Time spent downloading weights for org/model: 41.250000 seconds",
        "downloaded the weights in 41.250000 s",
    ),
    ("[default_loader.py:308] Loading weights took 4.13 seconds", "loaded the weights in 4.13 s"),
    (
        "[gpu_model_runner.py:3338] Model loading took 14.9889 GiB and 5.471263 seconds",
        "loaded the model: 14.9889 GiB in 5.471263 s",
    ),
    (
        "[gpu_model_runner.py:5150] Model loading took 0.51 GiB memory and 2.101000 seconds",
        "loaded the model: 0.51 GiB in 2.101000 s",
    ),
    (
        "[backends.py:559] Dynamo bytecode transform time: 8.21 s",
        "compiling: traced the model in 8.21 s",
    ),
    ("[monitor.py:34] torch.compile takes 38.45 s in total", "compiled the model in 38.45 s"),
    ("[monitor.py:20] torch.compile took 9.10 s in total", "compiled the model in 9.10 s"),
    ("[gpu_worker.py:298] Available KV cache memory: 55.83 GiB", "KV cache: 55.83 GiB"),
    (
        "[kv_cache_utils.py:1087] GPU KV cache size: 1,131,008 tokens",
        "KV cache: 1,131,008 tokens",
    ),
    (
        "[kv_cache_utils.py:1091] Maximum concurrency for 131,072 tokens per request: 8.63x",
        "room for 8.63 requests of 131,072 tokens at once",
    ),
    (
        "[kv_cache_utils.py:2327] CPU KV cache size: 65,536 tokens, Maximum concurrency for 2,048 tokens per"
        " request: 32.00x",
        "KV cache: 65,536 tokens, 32.00 requests of 2,048 tokens at once",
    ),
    (
        "[gpu_model_runner.py:4244] Graph capturing finished in 21 secs, took 0.58 GiB",
        "captured CUDA graphs in 21 s: 0.58 GiB",
    ),
    (
        "[core.py:210] init engine (profile, create kv cache, warmup model) took 72.63 seconds",
        "initialised the engine in 72.63 s",
    ),
    (
        "[core.py:386] init engine (profile, create kv cache, warmup model) took 33.06 s (compilation: 9.10"
        " s)",
        "initialised the engine in 33.06 s, compiling 9.10 s of it",
    ),
    (
        "[gpu_worker.py:1012] Free memory on device (78.67/79.18 GiB) on startup. Desired GPU memory"
        " utilization is (0.92, 72.85 GiB). Actual usage is 15.05 GiB for consumed memory (weights +"
        " non-torch), 1.31 GiB for peak activation, and 0.58 GiB for CUDAGraph memory.",
        "measured: 15.05 GiB weights and libraries, 1.31 GiB peak activation, 0.58 GiB CUDA graphs",
    ),
    (
        "[entry.py:140] Starting vLLM server on http://127.0.0.1:21000",
        "starting the HTTP server",
    ),
    (
        "[api_server.py:1971] Starting vLLM API server 0 on http://0.0.0.0:8000",
        "starting the HTTP server",
    ),
    ("INFO:     Application startup complete.", "started, waiting for its first answer"),
]
BARS = [
    (
        "vllm",
        "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:01<00:01,  1.9it/s]",
        "loading weights: file 2 of 4",
    ),
    (
        "vllm",
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  31%|###1      | 21/67 [00:01<00:02]",
        "capturing CUDA graphs: 21 of 67",
    ),
    (
        "transformers",
        "Loading weights:  40%|####      | 116/290 [00:00<00:00, 1130.1it/s]",
        "loading weights: tensor 116 of 290",
    ),
    ("transformers", "INFO:     Started server process [17]", "starting the HTTP server"),
    (
        "transformers",
        "INFO:     Uvicorn running on http://127.0.0.1:21000 (Press CTRL+C to quit)",
        "started, waiting for its first answer",
    ),
    ("mlflow", "Downloading artifacts:  60%|######    | 3/5 [00:00<00:00]", "downloading the model: 60 %"),
    (
        "mlflow",
        "2026/11/22 INFO mlflow.pyfunc.backend: === Running command 'exec uvicorn --host 127.0.0.1'",
        "loading the model",
    ),
]


@pytest.mark.parametrize(("line", "phase"), VLLM, ids=[phase[:30] for _, phase in VLLM])
def test_vllm_tells_its_phase(line, phase):
    assert engine_for("vllm").phase(PREFIX + line) == phase
    assert len(phase) <= 100


@pytest.mark.parametrize(("engine", "line", "phase"), BARS, ids=[phase for _, _, phase in BARS])
def test_bars_and_other_engines_tell_their_phase(engine, line, phase):
    assert engine_for(engine).phase(line) == phase


@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize("line", ["", "hello", "INFO 11-22 non-default args: {'model': 'm'}", "{0} {1} {}"])
def test_no_other_line_is_a_phase(engine, line):
    assert engine_for(engine).phase(line) == ""


def test_the_newest_phase_stands_until_the_next_one():
    engine = engine_for("vllm")
    log = [PREFIX + line for line, _ in VLLM[:4]]
    assert phases.newest(engine, [*log, "a warning", ""]) == "loaded the model: 14.9889 GiB in 5.471263 s"


def test_without_a_phase_the_newest_line_is_shown():
    assert phases.newest(engine_for("vllm"), ["first", "second", ""]) == "second"
    assert phases.newest(engine_for("vllm"), []) == ""
