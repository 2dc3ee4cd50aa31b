"""The typed options of each engine, and which of an engine's own flags they stand for.

What is typed here is checked, shown in the plan and used by its estimate; everything else an engine knows
goes through `args`. A flag that is ours may not be given there as well: two places would say two things.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from servestate.planner.launch import Scalar
from servestate.planner.spec.fields import Bytes, Flag, Fraction, Schema, Whole

_Count = Whole


class VllmOptions(Schema):
    """vLLM's options, named as its flags. `tensor_parallel_size` is the number of GPUs unless it is given."""

    max_model_len: _Count | None = Field(default=None, ge=1)
    gpu_memory_utilization: Fraction | None = None
    kv_cache_memory_bytes: Bytes | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel_size: _Count | None = Field(default=None, ge=1)
    pipeline_parallel_size: _Count | None = Field(default=None, ge=1)
    data_parallel_size: _Count | None = Field(default=None, ge=1)
    max_num_seqs: _Count | None = Field(default=None, ge=1)
    max_num_batched_tokens: _Count | None = Field(default=None, ge=1)
    dtype: str | None = None
    quantization: str | None = None
    load_format: str | None = None
    optimization_level: _Count | None = Field(default=None, ge=0, le=3)
    enforce_eager: Flag | None = None
    enable_sleep_mode: Flag | None = None
    enable_log_requests: Flag | None = None
    trust_remote_code: Flag | None = None
    revision: str | None = None


class LlamaCppOptions(Schema):
    """llama.cpp's options, named as its flags. `ctx_size` is shared by the `parallel` slots."""

    ctx_size: _Count | None = Field(default=None, ge=0)
    parallel: _Count | None = Field(default=None, ge=1)
    gpu_layers: _Count | None = Field(default=None, ge=0)
    threads: _Count | None = Field(default=None, ge=1)
    batch_size: _Count | None = Field(default=None, ge=1)
    ubatch_size: _Count | None = Field(default=None, ge=1)


class TransformersOptions(Schema):
    """Options of `transformers serve`. `device` is `auto`, `cpu` or `cuda`."""

    dtype: str | None = None
    device: Literal["auto", "cpu", "cuda"] | None = None
    quantization: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: Flag | None = None
    continuous_batching: Flag | None = None


class MlflowOptions(Schema):
    """Options of `mlflow models serve`."""

    workers: _Count | None = Field(default=None, ge=1)
    timeout_s: _Count | None = Field(default=None, ge=1)


OPTIONS: Mapping[str, type[Schema]] = {
    "vllm": VllmOptions,
    "llamacpp": LlamaCppOptions,
    "transformers": TransformersOptions,
    "mlflow": MlflowOptions,
}
"""The options of each engine that has any."""

OWNED_FLAGS: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "--model": "source",
        "--host": "",
        "--port": "",
        "--uds": "",
        "--api-key": "",
        "--served-model-name": "",
        "--shutdown-timeout": "drain_timeout_s",
        "--config": "",
        "-tp": "tensor_parallel_size",
        "-pp": "pipeline_parallel_size",
        "-dp": "data_parallel_size",
        "-O": "optimization_level",
        "-q": "quantization",
        "--runner": "task",
        "--task": "task",
        "--no-enforce-eager": "enforce_eager",
        "--no-trust-remote-code": "trust_remote_code",
        "--no-enable-sleep-mode": "enable_sleep_mode",
        "--no-enable-log-requests": "enable_log_requests",
        "--disable-log-requests": "enable_log_requests",
        "--root-path": "",
        "--ssl-keyfile": "",
        "--ssl-certfile": "",
        "--allow-credentials": "",
        "--allowed-origins": "",
    },
    "llamacpp": {
        "--model": "source",
        "-m": "source",
        "--alias": "",
        "-a": "",
        "--host": "",
        "--port": "",
        "--api-key": "",
        "--api-key-file": "",
        "-c": "ctx_size",
        "-np": "parallel",
        "-ngl": "gpu_layers",
        "--n-gpu-layers": "gpu_layers",
        "-t": "threads",
        "-b": "batch_size",
        "-ub": "ubatch_size",
        "--embeddings": "task",
        "--embedding": "task",
    },
    "transformers": {
        "--host": "",
        "--port": "",
        "--enable-cors": "",
        "--model-timeout": "",
        "--force-model": "source",
        "--no-trust-remote-code": "trust_remote_code",
        "--no-continuous-batching": "continuous_batching",
    },
    "mlflow": {
        "-m": "source",
        "--model-uri": "source",
        "-h": "",
        "--host": "",
        "-p": "",
        "--port": "",
        "-w": "workers",
        "-t": "timeout_s",
        "--timeout": "timeout_s",
        "--env-manager": "",
        "--no-conda": "",
        "--install-mlflow": "",
        "--enable-mlserver": "",
    },
}
"""Flags that the planner owns, by engine: to the option or key that says the same, "" where servestate itself
sets it. The flags of the options themselves (`--max-model-len`) are owned as well, see `owned_by`."""


def flag_of(option: str) -> str:
    """The flag that an option stands for."""
    return "--" + option.replace("_", "-")


def tensor_parallel(gpus: int, options: Mapping[str, Scalar]) -> int:
    """Over how many GPUs vLLM splits each layer: what is given, else what the other two ways to use several
    GPUs leave of them."""
    if given := options.get("tensor_parallel_size"):
        return int(given)
    others = [int(options.get(f"{way}_parallel_size") or 1) for way in ("pipeline", "data")]
    return max(1, gpus // (others[0] * others[1]))


def owned_by(engine: str, arg: str) -> str | None:
    """What to use instead of the argument `arg`: the name of an option or key, "" where servestate sets it by
    itself, None where the argument is the user's own."""
    flag = arg.partition("=")[0]
    if not flag.startswith("-") or len(flag) < 2:
        return None
    owned = _owned(engine)
    if flag in owned:
        return owned[flag]
    if not flag.startswith("--"):
        return _attached(engine, flag, owned)
    if engine == "vllm" and len(flag) > 2:  # it takes both spellings, and any beginning that is not ambiguous
        flag = flag.replace("_", "-")
        return next((instead for name, instead in owned.items() if name.startswith(flag)), None)
    return None


def _owned(engine: str) -> dict[str, str]:
    """Every flag of the planner's, options' own ones included."""
    kind = OPTIONS.get(engine)
    options = {flag_of(name): name for name in (kind.model_fields if kind is not None else ())}
    return {**options, **OWNED_FLAGS.get(engine, {})}


def _attached(engine: str, flag: str, owned: Mapping[str, str]) -> str | None:
    """What owns a one-letter flag with its value attached, as in `-O3`. llama.cpp takes numbers that way, and
    other flags of it begin with the same letter (`-tb`)."""
    if engine == "llamacpp" and flag[2:3].isalpha():
        return None
    return owned.get(flag[:2])
