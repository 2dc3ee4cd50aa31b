"""The fit estimate against published models, the logs of real engines, and properties over made-up ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.fit import (
    Asked,
    LatentAttention,
    Measured,
    ModelFacts,
    SlidingWindow,
    Sureness,
    estimate,
    explain,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
GPU_80 = int(79.25 * GIB)


def model(**facts) -> ModelFacts:
    """A model with the shape of Llama 3.1 8B, but for `facts`."""
    llama = {
        "source_format": "safetensors",
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "weight_bytes": 16_060_522_496,
        "parameters": 8_030_261_248,
        "layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "query_heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "vocab_size": 128_256,
        "max_context": 131_072,
    }
    return ModelFacts(**{**llama, **facts})


LLAMA = model()
GEMMA_270M = model(
    source_format="gguf", architecture="gemma3", dtype="Q8_0", weight_bytes=246_587_904, layers=18,
    hidden_size=640, intermediate_size=2048, query_heads=4, kv_heads=1, head_dim=256, vocab_size=262_144,
    max_context=32_768, sliding=SlidingWindow(512, 15),
)  # fmt: skip


def test_one_token_of_llama_8b_costs_128_kib() -> None:
    found = estimate(LLAMA, Asked("vllm", context=8192), GPU_80)
    assert found.kv_per_token == 128 * KIB
    assert found.kv == GIB
    assert round(found.weights / GIB, 2) == 14.96
    assert found.sureness is Sureness.HIGH


QWEN_HALF_B = model(
    weight_bytes=988_097_824, parameters=494_032_768, layers=24, hidden_size=896, intermediate_size=4864,
    query_heads=14, kv_heads=2, head_dim=64, vocab_size=151_936, max_context=32_768,
)  # fmt: skip
LLAVA_7B = model(weight_bytes=int(14.08 * GIB), vocab_size=32_064, multimodal=True)


@pytest.mark.parametrize(
    ("facts", "asked", "total_gib", "room_gib", "concurrency"),
    [
        (LLAMA, Asked("vllm"), 79.25, 56.21, 3.51),
        (QWEN_HALF_B, Asked("vllm", context=2048, gpu_memory_utilization=0.85), 23.99, 18.65, 795.7),
        (
            LLAVA_7B,
            Asked("vllm", context=4096, gpu_memory_utilization=0.9, max_num_batched_tokens=16_384),
            79.19, 55.15, 110.29,
        ),
    ],
    ids=["Llama 3.1 8B, v0.31", "Qwen2.5 0.5B, v0.27", "LLaVA 1.6 Mistral 7B, v0.10"],
)  # fmt: skip
def test_room_for_the_cache_as_vllm_logged_it(
    facts: ModelFacts, asked: Asked, total_gib: float, room_gib: float, concurrency: float
) -> None:
    found = estimate(facts, asked, int(total_gib * GIB))
    room = found.claimed - found.weights - found.activations - found.overhead
    assert room == pytest.approx(room_gib * GIB, rel=0.02)
    assert found.concurrency == pytest.approx(concurrency, rel=0.02)
    assert found.claimed == int(int(total_gib * GIB) * asked.gpu_memory_utilization)


def test_measured_parts_give_the_cache_that_vllm_reported() -> None:
    """35.55 of 39.5 GiB, less 14.96 of weights, 9.37 of activations and 0.10 beside: 11.12 GiB."""
    measured = Measured(int(14.96 * GIB), int(9.37 * GIB), int(0.10 * GIB))
    asked = Asked("vllm", context=8192, gpu_memory_utilization=0.9, measured=measured)
    found = estimate(LLAMA, asked, int(39.5 * GIB))
    assert found.concurrency * found.kv / GIB == pytest.approx(11.12, abs=0.005)
    assert not estimate(LLAMA, replace(asked, context=131_072), int(39.5 * GIB)).fits
    assert found.longest_context == pytest.approx(11.12 * GIB / (128 * KIB), rel=0.001)


def test_vllm_starts_only_where_its_whole_share_is_free() -> None:
    """67.24 of 79.25 GiB free is less than 0.9 of them, 71.33, though the model would need far less."""
    found = estimate(LLAMA, Asked("vllm", context=8192, gpu_memory_utilization=0.9), GPU_80)
    assert found.fits
    assert found.needed < 67.24 * GIB
    assert found.missing(int(67.24 * GIB)) / GIB == pytest.approx(71.33 - 67.24, abs=0.01)
    assert found.missing(int(71.33 * GIB)) == 0


def test_longest_context_is_the_one_that_vllm_advises() -> None:
    """36 layers of latent attention: 22.5 GiB for 1,048,576 tokens; it advised 810,208 for 17.39 GiB."""
    facts = model(layers=36, latent=LatentAttention(256, 64), max_context=1_048_576)
    asked = Asked("vllm", gpu_memory_utilization=1.0, measured=Measured(0, 0, 0))
    found = estimate(facts, asked, int(17.39 * GIB))
    assert found.kv / GIB == 22.5
    assert found.longest_context == pytest.approx(810_208, abs=300)


@pytest.mark.parametrize(
    ("facts", "tensor_parallel", "per_token"),
    [
        (model(layers=28, kv_heads=4), 1, 56 * KIB),  # Qwen2.5 7B
        (model(layers=28, kv_heads=4), 2, 28 * KIB),
        (model(layers=28, kv_heads=4), 8, 14 * KIB),  # more GPUs than heads: each holds one whole head
        (model(intermediate_size=28672), 1, 128 * KIB),  # Mixtral 8x7B: experts share the attention
        (model(layers=61, latent=LatentAttention(512, 64)), 1, 70_272),  # DeepSeek V3
        (model(layers=61, latent=LatentAttention(512, 64)), 8, 70_272),  # the vector is whole everywhere
        (model(layers=32, stateful_layers=28), 1, 16 * KIB),  # Jamba: 4 layers with attention
    ],
)
def test_cache_of_one_token(facts: ModelFacts, tensor_parallel: int, per_token: int) -> None:
    asked = Asked("vllm", tensor_parallel=tensor_parallel, context=16)
    assert estimate(facts, asked, GPU_80).kv_per_token == per_token


def test_fp8_halves_the_cache_and_pipeline_stages_share_the_layers() -> None:
    plain = estimate(LLAMA, Asked("vllm"), GPU_80)
    assert estimate(LLAMA, Asked("vllm", kv_cache_dtype="fp8"), GPU_80).kv * 2 == plain.kv
    staged = estimate(LLAMA, Asked("vllm", pipeline_parallel=3), GPU_80)
    assert staged.kv_per_token == 11 * 4 * KIB  # 11 of 32 layers on the fullest GPU
    assert staged.weights == -(-LLAMA.weight_bytes * 11 // 32)
    assert staged.sureness is Sureness.MEDIUM


def test_windows_of_gemma_3_27b_hold_a_window_and_a_batch() -> None:
    gemma = model(layers=62, kv_heads=16, sliding=SlidingWindow(1024, 52), vocab_size=262_208)
    found = estimate(gemma, Asked("vllm", context=131_072, max_num_batched_tokens=8192), GPU_80)
    layer = 2 * 16 * 128 * 2
    assert found.kv == 10 * layer * 131_072 + 52 * layer * 9_216
    assert found.sureness is Sureness.MEDIUM
    assert found.notes == ("52 layers with a sliding window",)


@pytest.mark.parametrize(
    ("context", "slots", "kv_mib", "compute_mib"),
    [
        (512, 1, 9.0, 20.28),
        (4096, 1, 27.0, 24.28),
        (4096, 4, 72.0, 24.28),
        (8192, 2, 54.0, 25.28),
        (32768, 1, 111.0, 52.28),
        (32768, 4, 156.0, 31.28),
        (0, 0, 111.0, 52.28),  # the model's own context, one slot
    ],
)
def test_llamacpp_buffers(context: int, slots: int, kv_mib: float, compute_mib: float) -> None:
    """As llama.cpp logged them for Gemma 3 270M: caches exactly, compute and output buffers within 1 %."""
    found = estimate(GEMMA_270M, Asked("llamacpp", context=context, max_num_seqs=slots), 0)
    assert found.kv / MIB == kv_mib
    assert found.activations / MIB == pytest.approx(compute_mib, rel=0.01)


def test_a_smaller_batch_of_llamacpp() -> None:
    found = estimate(GEMMA_270M, Asked("llamacpp", context=8192, max_num_batched_tokens=128), 0)
    assert found.kv / MIB == 35.25
    assert found.activations / MIB == pytest.approx(6.76 + 1, rel=0.01)


def test_a_cache_of_fixed_size_ignores_the_utilization() -> None:
    asked = Asked("vllm", context=8192, kv_cache_memory_bytes=2 * GIB)
    found = estimate(LLAMA, asked, int(23.5 * GIB))
    assert found.fits
    assert found.claimed == found.needed + GIB
    assert found.concurrency == 2
    assert not estimate(LLAMA, replace(asked, context=16_400), int(23.5 * GIB)).fits
    assert not estimate(LLAMA, asked, 18 * GIB).fits  # it does not fit beside the weights


def test_quantizing_while_loading_shrinks_the_weights_but_not_the_embeddings() -> None:
    found = estimate(LLAMA, Asked("vllm", quantization="fp8"), GPU_80)
    assert 8.4 * GIB < found.weights < 8.6 * GIB  # one byte a linear weight, two an embedding
    already = estimate(model(quantization="fp8"), Asked("vllm", quantization="fp8"), GPU_80)
    assert already.weights == LLAMA.weight_bytes


def test_vllm_halves_a_32_bit_checkpoint() -> None:
    found = estimate(model(dtype="float32", weight_bytes=2 * LLAMA.weight_bytes), Asked("vllm"), GPU_80)
    assert (found.weights, found.kv_per_token) == (LLAMA.weight_bytes, 128 * KIB)


@pytest.mark.parametrize(
    ("facts", "asked", "gpu_memory", "line"),
    [
        (
            LLAMA, Asked("vllm", context=8192), GPU_80,
            "needs 18.0 and takes 72.9 of 79.2 GiB per GPU: weights 15.0, KV cache 1.0 (8,192 tokens), "
            "activations and graphs 2.0; 55 sequences at full length; estimate sure within 10 %",
        ),
        (
            LLAMA, Asked("vllm"), int(19 * GIB),
            "needs 32.1 of 19.0 GiB per GPU: weights 15.0, KV cache 16.0 (131,072 tokens), "
            "activations and graphs 1.1; estimate sure within 10 %; does not fit in the 17.5 GiB "
            "that vLLM may use: the longest context that fits is 11,600 tokens: set max_model_len"
            " to that",
        ),
        (
            LLAMA, Asked("vllm"), 15 * GIB,
            "needs 32.1 of 15.0 GiB per GPU: weights 15.0, KV cache 16.0 (131,072 tokens), "
            "activations and graphs 1.1; estimate sure within 10 %; does not fit, whatever the "
            "context: use more or larger GPUs, or a smaller or quantized model",
        ),
        (
            LLAMA, Asked("vllm", context=8192, gpu_memory_utilization=0.1), 80 * GIB,
            "needs 18.0 of 80.0 GiB per GPU: weights 15.0, KV cache 1.0 (8,192 tokens), activations and "
            "graphs 2.0; estimate sure within 10 %; does not fit in the 8.0 GiB that vllm may use: give it "
            "0.23 of the GPU (gpu_memory_utilization, gpu_fraction)",
        ),
        (
            GEMMA_270M, Asked("llamacpp", context=4096, max_num_seqs=4), 0,
            "needs 0.3 GiB: weights 0.2, KV cache 0.1 (4,096 tokens), activations and graphs 0.0;"
            " estimate sure within 10 % (its prompt cache may take up to 8 GiB more)",
        ),
        (
            model(stateful_layers=28), Asked("other", context=100), 20 * GIB,
            "needs 15.5 of 20.0 GiB per GPU: weights 15.0, KV cache 0.0 (100 tokens), activations"
            ' and graphs 0.5; 1 sequence at full length; rough estimate (how engine "other" uses '
            "memory is not known; the state of 28 recurrent layers is not counted)",
        ),
    ],
)  # fmt: skip
def test_explanation(facts: ModelFacts, asked: Asked, gpu_memory: int, line: str) -> None:
    assert explain(estimate(facts, asked, gpu_memory)) == line


def test_a_small_model_on_a_gpu_is_less_sure_until_it_was_measured() -> None:
    """vLLM logged 1.49 GiB of weights and non-torch memory, 0.25 of activations, 0.37 of graphs."""
    asked = Asked("vllm", context=2048)
    found = estimate(QWEN_HALF_B, asked, 24 * GIB)
    assert found.sureness is Sureness.MEDIUM
    assert found.needed - found.kv == pytest.approx((1.49 + 0.25 + 0.37) * GIB, rel=0.1)
    measured = Measured(int(1.49 * GIB), GIB // 4, int(0.37 * GIB))
    assert estimate(QWEN_HALF_B, replace(asked, measured=measured), 24 * GIB).sureness is Sureness.HIGH


def test_a_model_without_a_known_context_says_what_it_left_out() -> None:
    found = estimate(model(max_context=0), Asked("vllm"), GPU_80)
    assert (found.kv, found.sureness) == (0, Sureness.LOW)
    assert found.longest_context == pytest.approx(56.0 * GIB / (128 * KIB), rel=0.01)
    assert "no KV cache counted" in explain(found)


models = st.builds(
    model,
    weight_bytes=st.integers(1, 1 << 41),
    parameters=st.integers(0, 1 << 40),
    dtype=st.sampled_from(["bfloat16", "float16", "float32", "Q4_K", ""]),
    layers=st.integers(1, 128),
    hidden_size=st.integers(64, 16_384),
    kv_heads=st.integers(0, 64),
    head_dim=st.integers(0, 256),
    vocab_size=st.integers(0, 300_000),
    max_context=st.integers(0, 1 << 20),
    sliding=st.none() | st.builds(SlidingWindow, st.integers(1, 8192), st.integers(1, 128)),
    latent=st.none() | st.builds(LatentAttention, st.integers(1, 512), st.integers(0, 64)),
    stateful_layers=st.integers(0, 128),
)
requests = st.builds(
    Asked,
    engine=st.sampled_from(["vllm", "llamacpp", "transformers", "other"]),
    tensor_parallel=st.sampled_from([1, 2, 4, 8]),
    pipeline_parallel=st.sampled_from([1, 2, 3]),
    context=st.integers(0, 1 << 18),
    max_num_seqs=st.integers(0, 64),
    max_num_batched_tokens=st.sampled_from([0, 128, 2048, 16_384]),
    gpu_memory_utilization=st.floats(0.1, 1.0),
    kv_cache_dtype=st.sampled_from(["auto", "fp8", "q8_0", "strange"]),
    kv_cache_memory_bytes=st.sampled_from([0, 0, GIB]),
    quantization=st.sampled_from(["", "fp8"]),
    enforce_eager=st.booleans(),
)
memories = st.integers(0, 300 * GIB)


@given(models, requests, memories)
def test_the_parts_add_up_and_every_estimate_can_be_told(facts, asked, memory) -> None:
    found = estimate(facts, asked, memory)
    parts = (found.weights, found.kv, found.activations, found.overhead)
    assert min(parts) >= 0
    assert sum(parts) == found.needed
    assert found.longest_context >= (found.context if found.fits and memory else 0)
    assert "\n" not in explain(found)
    assert estimate(facts, asked, memory) == found


@given(models, requests, memories, st.integers(1, 1 << 18))
def test_more_context_never_needs_less(facts, asked, memory, more) -> None:
    asked = replace(asked, context=asked.context + 1)
    longer = estimate(facts, replace(asked, context=asked.context + more), memory)
    shorter = estimate(facts, asked, memory)
    assert shorter.kv <= longer.kv
    assert shorter.needed <= longer.needed
    assert shorter.fits or not longer.fits


@given(models, requests, memories, st.integers(1, 4096))
def test_a_larger_batch_never_needs_less(facts, asked, memory, more) -> None:
    asked = replace(asked, max_num_batched_tokens=asked.max_num_batched_tokens + 1)
    larger = replace(asked, max_num_batched_tokens=asked.max_num_batched_tokens + more)
    assert estimate(facts, asked, memory).needed <= estimate(facts, larger, memory).needed


@given(models, requests, memories, st.integers(1, 64))
def test_more_sequences_never_need_less_but_share_a_context_of_llamacpp(facts, asked, memory, more) -> None:
    asked = replace(asked, max_num_seqs=asked.max_num_seqs + 1)
    larger = replace(asked, max_num_seqs=asked.max_num_seqs + more)
    few, many = estimate(facts, asked, memory), estimate(facts, larger, memory)
    assert few.kv <= many.kv or asked.engine == "llamacpp"
    assert few.needed <= many.needed or asked.engine == "llamacpp"


@given(models, requests, st.integers(1, 300 * GIB))
def test_it_fits_at_the_longest_context_and_not_one_block_above(facts, asked, memory) -> None:
    found = estimate(facts, asked, memory)
    longest, slots = found.longest_context, asked.max_num_seqs or 1
    if longest:
        assert estimate(facts, replace(asked, context=longest), memory).fits
    ends = max(facts.max_context * (slots if asked.engine == "llamacpp" else 1), asked.context) or 1 << 24
    block = {"vllm": 16, "llamacpp": 256 * slots}.get(asked.engine, 1)
    if longest + block <= ends:
        assert not estimate(facts, replace(asked, context=longest + block), memory).fits


@given(models, requests, memories)
def test_tensor_parallel_divides_weights_and_the_cache_no_further_than_whole_heads(
    facts, asked, memory
) -> None:
    one = estimate(facts, replace(asked, engine="vllm", tensor_parallel=1), memory)
    four = estimate(facts, replace(asked, engine="vllm", tensor_parallel=4), memory)
    assert one.weights / 4 <= four.weights <= one.weights / 4 + 1
    assert one.kv_per_token / 4 <= four.kv_per_token <= one.kv_per_token
    if facts.latent is None and facts.kv_heads % 4 == 0:
        assert four.kv_per_token == pytest.approx(one.kv_per_token / 4, abs=facts.layers)
