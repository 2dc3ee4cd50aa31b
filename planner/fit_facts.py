"""What a fit is judged by: what a model's headers say, and what its engine is asked for."""

from __future__ import annotations

from dataclasses import dataclass

VLLM_UTILIZATION = 0.92
"""vLLM's default share of a GPU (`--gpu-memory-utilization`; it was 0.9 up to 2025)."""


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """`layers` of the model attend to their last `window` tokens only."""

    window: int
    layers: int


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention: one compressed vector a token and layer, the same for all heads."""

    kv_lora_rank: int
    rope_dim: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the headers of a model's files say; never its weights.

    `source_format` is "safetensors" or "gguf"; `weight_bytes` sums its tensors as stored, `dtype` is the type
    that most of them have. `intermediate_size` is the feed-forward width of one token, over all experts that
    it goes to. `max_context` is 0 where unknown. `stateful_layers` keep a state of fixed size instead of a
    cache (Mamba, linear attention). `uneven`: layers differ in ways these numbers do not hold, so they are
    the largest of any layer.
    """

    source_format: str
    architecture: str
    dtype: str
    weight_bytes: int
    parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    sliding: SlidingWindow | None = None
    latent: LatentAttention | None = None
    stateful_layers: int = 0
    quantization: str = ""
    multimodal: bool = False
    uneven: bool = False

    @property
    def full_layers(self) -> int:
        """Layers whose cache grows with every token."""
        sliding = self.sliding.layers if self.sliding else 0
        return max(0, self.layers - self.stateful_layers - sliding)


@dataclass(frozen=True, slots=True)
class Measured:
    """What an engine's log said at an earlier start, in bytes of one GPU: it beats every formula.

    vLLM logs all three once it is up: `Actual usage is D GiB for consumed memory (weights + non-torch), E GiB
    for peak activation, and F GiB for CUDAGraph memory`; non-torch memory then counts as `weights`.
    """

    weights: int
    activations: int
    overhead: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What the engine is asked for. 0 and "" mean the engine's own default.

    `context` is the length of one sequence; for llama.cpp it is the total over its slots, as `--ctx-size` is.
    `max_num_seqs` are sequences at once (slots); `max_num_batched_tokens` the tokens of one forward pass
    (`--ubatch-size` of llama.cpp). With `kv_cache_memory_bytes`, vLLM ignores the utilization.
    """

    engine: str
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    gpu_memory_utilization: float = VLLM_UTILIZATION
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int = 0
    quantization: str = ""
    enforce_eager: bool = False
    measured: Measured | None = None
