"""What the fit estimate is asked, from launch specs."""

from __future__ import annotations

import pytest

from servestate.planner.asked import asked
from servestate.planner.fit_facts import VLLM_UTILIZATION
from servestate.planner.launch import LaunchSpec, Scalar


def spec(engine: str, *, gpus: int = 1, fraction: float = 1.0, **options: Scalar) -> LaunchSpec:
    given = tuple(sorted(options.items()))
    return LaunchSpec("docker", engine, "m", options=given, gpus=gpus, gpu_fraction=fraction)


def test_vllm_options_are_taken_as_given() -> None:
    found = asked(
        spec(
            "vllm",
            max_model_len=8192,
            max_num_seqs=16,
            max_num_batched_tokens=4096,
            gpu_memory_utilization=0.5,
            kv_cache_dtype="fp8",
            kv_cache_memory_bytes=2**30,
            quantization="awq",
            enforce_eager=True,
        )
    )
    assert (found.context, found.max_num_seqs, found.max_num_batched_tokens) == (8192, 16, 4096)
    assert (found.gpu_memory_utilization, found.kv_cache_memory_bytes) == (0.5, 2**30)
    assert (found.kv_cache_dtype, found.quantization, found.enforce_eager) == ("fp8", "awq", True)


def test_a_fraction_of_a_gpu_is_that_fraction_of_vllms_share() -> None:
    assert asked(spec("vllm")).gpu_memory_utilization == VLLM_UTILIZATION
    assert asked(spec("vllm", fraction=0.5)).gpu_memory_utilization == VLLM_UTILIZATION / 2
    assert asked(spec("vllm", fraction=0.5, gpu_memory_utilization=0.3)).gpu_memory_utilization == 0.3


@pytest.mark.parametrize(
    ("gpus", "options", "tensor", "pipeline"),
    [
        (0, {}, 1, 1),
        (4, {}, 4, 1),
        (4, {"pipeline_parallel_size": 2}, 2, 2),
        (4, {"tensor_parallel_size": 2}, 2, 1),
        (8, {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 4, 2),
    ],
)
def test_gpus_work_in_tensor_parallel_unless_told_otherwise(
    gpus: int, options: dict[str, Scalar], tensor: int, pipeline: int
) -> None:
    found = asked(spec("vllm", gpus=gpus, **options))
    assert (found.tensor_parallel, found.pipeline_parallel) == (tensor, pipeline)


def test_llamacpp_options() -> None:
    found = asked(spec("llamacpp", gpus=0, ctx_size=4096, parallel=2, ubatch_size=256))
    assert (found.engine, found.tensor_parallel) == ("llamacpp", 1)
    assert (found.context, found.max_num_seqs, found.max_num_batched_tokens) == (4096, 2, 256)


@pytest.mark.parametrize("engine", ["transformers", "mlflow", "command"])
def test_of_other_engines_only_the_gpus_are_known(engine: str) -> None:
    found = asked(spec(engine, gpus=2))
    assert (found.engine, found.tensor_parallel, found.context) == (engine, 2, 0)
