"""How each engine uses the memory of one GPU: the rules behind a fit. All sizes are bytes of one GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from servestate.planner.fit_facts import Asked, ModelFacts

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

VLLM_BLOCK = 16
"""Tokens of one KV cache block of vLLM on CUDA."""

VLLM_LARGE_GPU = 70 * GIB
"""From here on vLLM's server defaults to 8,192 batched tokens and 1,024 sequences, below to 2,048 and 256. It
excepts the 80 GB A100 by name; a size cannot, and so errs upwards there by up to 1 GiB."""

LOGIT_BYTES = 10
"""Per vocabulary entry and sequence while vLLM samples: 16-bit logits, 32-bit copy, 32-bit probabilities.
Logs reserve 1.44 GiB for all activations of Llama 3.1 8B on an 80 GB A100, and 0.25 GiB for those of Qwen2.5
0.5B on 24 GB; the formulas here say 1.22 and 0.36 GiB."""

NON_TORCH = 3 * GIB // 10
"""CUDA context and libraries beside PyTorch's allocator: logs show 0.07 to 0.56 GiB on one GPU."""

COLLECTIVES = GIB // 2
"""NCCL and all-reduce buffers of each GPU where there are several: logs show up to 0.95 GiB in all."""

CUDA_GRAPHS = GIB // 2
"""Captured graphs: logs show 0.17 to 0.67 GiB for models up to 80 GiB; more for large mixtures of experts."""

CUDA_CONTEXT = GIB // 2
"""What a CUDA process holds before its first tensor, kernels included (llama.cpp, PyTorch)."""

LLAMACPP_PAD = 256
"""llama.cpp rounds the cells of each cache of each slot up to this."""

LLAMACPP_UBATCH = 512
"""Tokens of one llama.cpp forward pass (`--ubatch-size`)."""

LONGEST = 1 << 24
"""Where the search for the longest context ends when the model names no maximum."""

KV_BYTES_OF_32 = {
    "auto": 64, "float16": 64, "f16": 64, "half": 64, "bfloat16": 64, "bf16": 64, "float32": 128, "f32": 128,
    "fp8": 32, "fp8_e4m3": 32, "fp8_e5m2": 32, "fp8_inc": 32, "fp8_ds_mla": 37,
    "q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18, "iq4_nl": 18,
}  # fmt: skip
"""Bytes of 32 cache values (the block of llama.cpp's quantized types, scales included)."""

_ONLINE_BYTES_OF_2 = {"fp8": 2, "bitsandbytes": 1}
"""Bytes of two linear weights under quantizations that vLLM applies while it loads a 16-bit checkpoint."""


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """transformers, and engines that are not known: layers spread over the GPUs, a cache that grows."""

    facts: ModelFacts
    asked: Asked
    gpu_memory: int
    keeps_float32: ClassVar[bool] = True
    takes_its_share: ClassVar[bool] = False  # of the GPU, whatever it needs

    @property
    def tensor_parallel(self) -> int:
        return 1

    @property
    def stages(self) -> int:
        """GPUs that hold layers of their own."""
        return self.asked.tensor_parallel * self.asked.pipeline_parallel

    @property
    def slots(self) -> int:
        return self.asked.max_num_seqs or 1

    @property
    def budget(self) -> int:
        """What the engine may take."""
        return self.gpu_memory

    @property
    def step(self) -> int:
        """Tokens by which the cache grows."""
        return 1

    @property
    def reserved(self) -> int:
        """The size of the cache where it was asked for, else 0."""
        return 0

    @property
    def longest(self) -> int:
        """The longest context worth trying."""
        return max(self.facts.max_context, self.asked.context) or LONGEST

    def stored(self) -> int:
        """Bytes of all weights as they lie in memory."""
        return self.facts.weight_bytes

    def weights(self) -> int:
        """The weights of the GPU that holds most layers."""
        layers = self.facts.layers
        share = -(-layers // self.stages)
        return -(-self.stored() * share // (layers * self.tensor_parallel))

    def kv_layer(self) -> int:
        """Cache bytes of one token in one layer. A latent vector is whole on every GPU; a KV head too, where
        there are more GPUs than heads."""
        of_32 = KV_BYTES_OF_32.get(self.asked.kv_cache_dtype, KV_BYTES_OF_32["auto"])
        if self.facts.dtype == "float32" and self.asked.kv_cache_dtype == "auto" and self.keeps_float32:
            of_32 = KV_BYTES_OF_32["float32"]
        if self.facts.latent is not None:
            values = self.facts.latent.kv_lora_rank + self.facts.latent.rope_dim
        else:
            values = 2 * -(-self.facts.kv_heads // self.tensor_parallel) * self.facts.head_dim
        return -(-values * of_32 // 32)

    def held_layers(self, layers: int) -> int:
        """Layers of a kind on the GPU that holds most of them."""
        return -(-layers // self.stages)

    def full(self) -> int:
        """Cache bytes of one token in the layers that keep every token."""
        return self.kv_layer() * self.held_layers(self.facts.full_layers)

    def windowed(self) -> int:
        """Cache bytes of one token in the layers that keep a window."""
        return self.kv_layer() * self.held_layers(self.facts.sliding.layers) if self.facts.sliding else 0

    def kv(self, context: int) -> int:
        """The cache that must be there. Upper bound: the whole sequence also in windowed layers."""
        return (self.full() + self.windowed()) * context * self.slots

    def activations(self, context: int) -> int:
        """Peak of one forward pass over a whole prompt: gate, up and product of the feed-forward layer, and
        four copies of the hidden state."""
        width = 3 * self.facts.intermediate_size + 4 * self.facts.hidden_size
        size = 4 if self.facts.dtype == "float32" else 2
        return max(context * width * size, self.slots * self.facts.vocab_size * 4)

    def overhead(self) -> int:
        return CUDA_CONTEXT if self.gpu_memory else 0


@dataclass(frozen=True, slots=True)
class LlamaCpp(EngineMemory):
    """llama.cpp: the context is a total that its slots share evenly; caches are allocated at the start."""

    keeps_float32: ClassVar[bool] = False  # its cache is 16-bit unless told otherwise

    @property
    def step(self) -> int:
        return LLAMACPP_PAD * self.slots

    @property
    def longest(self) -> int:
        return max(self.facts.max_context * self.slots, self.asked.context) or LONGEST

    def tokens(self, context: int) -> int:
        return min(self.asked.max_num_batched_tokens or LLAMACPP_UBATCH, max(context, 1))

    def cells(self, context: int) -> tuple[int, int]:
        """Cells of one slot in full and in windowed layers: the window, and a batch on its way through it."""
        of_slot = _rounded(-(-context // self.slots), LLAMACPP_PAD)
        if self.facts.sliding is None:
            return of_slot, 0
        window = min(of_slot, self.facts.sliding.window + self.tokens(context))
        return of_slot, _rounded(window, LLAMACPP_PAD)

    def kv(self, context: int) -> int:
        full, windowed = self.cells(context)
        return self.slots * (full * self.full() + windowed * self.windowed())

    def activations(self, context: int) -> int:
        """Compute and output buffers: 32-bit feed-forward values and five hidden states a token, a 16-bit
        mask over each cache, logits of each slot. Within 1 % of the buffers that xllamacpp 2026.10 logs."""
        tokens = self.tokens(context)
        logits = self.slots * self.facts.vocab_size * 4
        width = 3 * self.facts.intermediate_size + 5 * self.facts.hidden_size
        return max(tokens * width * 4, logits) + tokens * 2 * sum(self.cells(context)) + logits


@dataclass(frozen=True, slots=True)
class Vllm(EngineMemory):
    """vLLM: tensor parallel splits heads and weights; the cache gets what is left of its share of the GPU."""

    keeps_float32: ClassVar[bool] = False  # dtype auto turns 32-bit checkpoints into 16-bit ones
    takes_its_share: ClassVar[bool] = True

    @property
    def step(self) -> int:
        return VLLM_BLOCK

    @property
    def reserved(self) -> int:
        return self.asked.kv_cache_memory_bytes

    @property
    def tensor_parallel(self) -> int:
        return self.asked.tensor_parallel

    @property
    def stages(self) -> int:
        return self.asked.pipeline_parallel

    @property
    def tokens(self) -> int:
        large = self.gpu_memory >= VLLM_LARGE_GPU
        return self.asked.max_num_batched_tokens or (8192 if large else 2048)

    @property
    def slots(self) -> int:
        large = self.gpu_memory >= VLLM_LARGE_GPU
        return self.asked.max_num_seqs or min(1024 if large else 256, self.tokens)

    @property
    def budget(self) -> int:
        return int(self.gpu_memory * self.asked.gpu_memory_utilization)

    def stored(self) -> int:
        """A 32-bit checkpoint becomes a 16-bit one; quantized while loading, only embeddings stay 16-bit."""
        size = self.facts.weight_bytes // (2 if self.facts.dtype == "float32" else 1)
        of_2 = _ONLINE_BYTES_OF_2.get(self.asked.quantization)
        if of_2 is None or self.facts.quantization:
            return size
        parameters = self.facts.parameters or size // 2
        embeddings = min(2 * self.facts.vocab_size * self.facts.hidden_size, parameters)
        return min(size, 2 * embeddings + (parameters - embeddings) * of_2 // 2)

    def kv(self, context: int) -> int:
        """One sequence, in whole blocks; a window also holds the batch on its way through it."""
        held = self.full() * _rounded(context, VLLM_BLOCK)
        if self.facts.sliding is None:
            return held
        window = min(context, self.facts.sliding.window - 1 + self.tokens)
        return held + self.windowed() * _rounded(window, VLLM_BLOCK)

    def activations(self, context: int) -> int:
        """Prompts come in chunks, so the context does not count: the larger of a full chunk in a feed-forward
        layer, and sampling for all sequences at once."""
        ffn = -(-self.facts.intermediate_size // self.tensor_parallel)
        chunk = self.tokens * (3 * ffn + 4 * self.facts.hidden_size) * 2
        return max(chunk, self.slots * self.facts.vocab_size * LOGIT_BYTES)

    def overhead(self) -> int:
        several = self.tensor_parallel * self.stages > 1
        graphs = 0 if self.asked.enforce_eager else CUDA_GRAPHS
        return NON_TORCH + (COLLECTIVES if several else 0) + graphs


ENGINES: dict[str, type[EngineMemory]] = {"vllm": Vllm, "llamacpp": LlamaCpp, "transformers": EngineMemory}


def _rounded(number: int, to: int) -> int:
    return -(-number // to) * to
