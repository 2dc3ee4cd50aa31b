"""Launch spec -> what its engine is asked for, in the terms of the fit estimate."""

from __future__ import annotations

from servestate.planner.fit_facts import VLLM_UTILIZATION, Asked
from servestate.planner.launch import LaunchSpec
from servestate.planner.spec.engine_options import tensor_parallel


def asked(spec: LaunchSpec) -> Asked:
    """What decides how much memory of each GPU the engine of `spec` takes. Arguments outside of the typed
    options are not looked at."""
    match spec.engine:
        case "vllm":
            return _vllm(spec)
        case "llamacpp":
            return Asked(
                "llamacpp",
                tensor_parallel=max(1, spec.gpus),
                context=_whole(spec, "ctx_size"),
                max_num_seqs=_whole(spec, "parallel"),
                max_num_batched_tokens=_whole(spec, "ubatch_size"),
            )
        case _:
            return Asked(spec.engine, tensor_parallel=max(1, spec.gpus))


def _vllm(spec: LaunchSpec) -> Asked:
    given = spec.option("gpu_memory_utilization")
    default = VLLM_UTILIZATION * spec.gpu_fraction
    pipeline = _whole(spec, "pipeline_parallel_size") or 1
    return Asked(
        "vllm",
        tensor_parallel=tensor_parallel(spec.gpus, dict(spec.options)),
        pipeline_parallel=pipeline,
        context=_whole(spec, "max_model_len"),
        max_num_seqs=_whole(spec, "max_num_seqs"),
        max_num_batched_tokens=_whole(spec, "max_num_batched_tokens"),
        gpu_memory_utilization=float(given) if given is not None else default,
        kv_cache_dtype=str(spec.option("kv_cache_dtype") or "auto"),
        kv_cache_memory_bytes=_whole(spec, "kv_cache_memory_bytes"),
        quantization=str(spec.option("quantization") or ""),
        enforce_eager=bool(spec.option("enforce_eager")),
    )


def _whole(spec: LaunchSpec, name: str) -> int:
    return int(spec.option(name) or 0)
