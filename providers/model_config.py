"""What a model's config says, as facts: `config.json` of transformers, or metadata of a GGUF file. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servestate.planner.fit_facts import LatentAttention, ModelFacts, SlidingWindow
from servestate.providers.gguf import ArrayLength, Gguf
from servestate.providers.model_files import Weights, not_a_model

_LARGEST = 1 << 32  # of any number in a config; larger ones are damage or malice

# Models that put the language model's numbers one level down, beside those of the other parts.
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_OTHER_PARTS = ("vision_config", "audio_config", "vision_tower_config")

# Gemma 3's published configs leave out what equals the defaults of its class in transformers.
_GEMMA3 = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208}
_DEFAULTS = {"gemma3": _GEMMA3, "gemma3_text": _GEMMA3}

# One layer in so many attends to everything, the others to a window; configs and GGUF files of the first
# releases do not say it, the programs know it by name.
_FULL_EVERY = {
    "gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2, "gpt-oss": 2, "exaone4": 4,
    "llama4": 4,
}  # fmt: skip

_WINDOWED = {"sliding_attention", "chunked_attention", "local", "local_attention"}
_FULL = {"full_attention", "attention", "global", "global_attention", "hybrid"}
_WITHOUT_CACHE = {"bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "nomic_bert", "mpnet"}
_RECURRENT = {"mamba", "mamba2", "falcon_mamba", "rwkv", "rwkv6", "rwkv7"}
_STRETCHED = {"yarn", "linear", "dynamic"}
_UNQUANTIZED = {"F64", "F32", "F16", "BF16", ""}


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A mapping whose numbers are read with their bounds checked; `name` is how messages call it."""

    values: Mapping[str, Any]
    name: str

    def get(self, *keys: str, default: int = 0) -> int:
        """The first of `keys` that has a value; the largest where it is a list of one value a layer."""
        for key in keys:
            found = self.values.get(key)
            if found is not None:
                return max((self._checked(key, one) for one in _listed(found)), default=0)
        return default

    def need(self, *keys: str) -> int:
        """As `get`. Raises PermanentError SS523 where it is missing or 0."""
        found = self.get(*keys)
        if not found:
            raise not_a_model(self.name, f'it does not say "{keys[0]}"')
        return found

    def _checked(self, key: str, found: Any) -> int:
        if isinstance(found, ArrayLength) or not isinstance(found, int) or not 0 <= found <= _LARGEST:
            raise not_a_model(self.name, f'"{key}" is {str(found)[:40]!r}')
        return found

    def uneven(self, *keys: str) -> bool:
        """Whether any of `keys` differs from layer to layer (0 aside: layers without a cache)."""
        return any(len({str(one) for one in _listed(self.values.get(key)) if one}) > 1 for key in keys)


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def facts_of_config(config: Mapping[str, Any], weights: Weights, name: str) -> ModelFacts:
    """The facts in a `config.json`. Raises PermanentError SS523 naming what it lacks, or says wrongly."""
    text = next((config[key] for key in _NESTED if isinstance(config.get(key), dict)), config)
    if isinstance(text.get("text_config"), dict):
        text = text["text_config"]
    kind = str(text.get("model_type") or config.get("model_type") or "")
    known = {key: value for key, value in text.items() if value is not None}
    numbers = _Numbers({**_DEFAULTS.get(kind, {}), **known}, name)
    layers = numbers.need("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    hidden = numbers.need("hidden_size", "n_embd", "d_model", "dim")
    heads = numbers.get("num_attention_heads", "n_head", "n_heads", "num_heads")
    architectures = config.get("architectures")
    quantization = config.get("quantization_config") or text.get("quantization_config") or {}
    return ModelFacts(
        source_format="safetensors",
        architecture=str(architectures[0] if isinstance(architectures, list) and architectures else kind),
        dtype=_dtype(config, text, weights),
        weight_bytes=weights.bytes,
        parameters=weights.parameters,
        layers=layers,
        hidden_size=hidden,
        intermediate_size=_feed_forward(numbers, hidden),
        query_heads=heads,
        kv_heads=0 if kind in _WITHOUT_CACHE else _kv_heads(numbers, heads),
        head_dim=numbers.get("head_dim", default=hidden // heads if heads else 0),
        vocab_size=numbers.get("vocab_size"),
        max_context=_max_context(numbers),
        sliding=_sliding(numbers, kind, layers),
        latent=_latent(numbers),
        stateful_layers=_stateful(numbers, kind, layers),
        quantization=str(quantization.get("quant_method", "") if isinstance(quantization, dict) else ""),
        multimodal=text is not config or any(config.get(key) for key in _OTHER_PARTS),
        uneven=numbers.uneven("num_key_value_heads", "num_kv_heads")
        or bool(numbers.get("num_kv_shared_layers", "global_head_dim")),
    )


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any], weights: Weights) -> str:
    """Of the weights as they are; of the config where only their total is known."""
    places = (config, text)
    said = (place.get(key) for place in places for key in ("dtype", "torch_dtype"))
    return weights.dtype or next((found for found in said if isinstance(found, str)), "")


def _kv_heads(numbers: _Numbers, heads: int) -> int:
    if numbers.values.get("multi_query") is True and not numbers.values.get("new_decoder_architecture"):
        return 1
    return numbers.get("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", default=heads)


def _feed_forward(numbers: _Numbers, hidden: int) -> int:
    dense = numbers.get("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size")
    experts = numbers.get("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk")
    of_expert = numbers.get("moe_intermediate_size", "expert_ffn_hidden_size", default=dense)
    shared = numbers.get(
        "shared_expert_intermediate_size", default=numbers.get("n_shared_experts") * of_expert
    )
    return max(dense, experts * of_expert + shared) or 4 * hidden


def _max_context(numbers: _Numbers) -> int:
    """Stretched where the config stretches the positions, as vLLM reads it."""
    positions = numbers.get("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
    scaling = numbers.values.get("rope_scaling") or numbers.values.get("rope_parameters")
    if not isinstance(scaling, dict) or str(scaling.get("rope_type", scaling.get("type"))) not in _STRETCHED:
        return positions
    factor = scaling.get("factor")
    if not isinstance(factor, int | float) or not 1 <= factor <= 1024:
        return positions
    original = _Numbers(scaling, numbers.name).get("original_max_position_embeddings", default=positions)
    return max(positions, int(original * factor))


def _latent(numbers: _Numbers) -> LatentAttention | None:
    rank = numbers.get("kv_lora_rank")
    return LatentAttention(rank, numbers.get("qk_rope_head_dim")) if rank else None


def _kinds(numbers: _Numbers) -> list[str]:
    """What each layer is, where the config lists it."""
    for key in ("layer_types", "layers_block_type", "layer_block_types"):
        found = numbers.values.get(key)
        if isinstance(found, list):
            return [str(one) for one in found]
    return []


def _sliding(numbers: _Numbers, kind: str, layers: int) -> SlidingWindow | None:
    window = numbers.get("sliding_window", "attention_chunk_size", "sliding_window_size")
    if not window or numbers.values.get("use_sliding_window") is False:
        return None
    if kinds := _kinds(numbers):
        windowed = sum(one in _WINDOWED for one in kinds)
    elif every := _every(numbers.values.get("sliding_window_pattern")) or _FULL_EVERY.get(kind, 0):
        windowed = layers - layers // every
    elif numbers.values.get("use_sliding_window") is True:  # Qwen 2: only above this layer
        windowed = max(0, layers - numbers.get("max_window_layers"))
    else:
        windowed = layers
    return SlidingWindow(window, min(windowed, layers)) if windowed else None


def _every(pattern: Any) -> int:
    return pattern if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0 else 0


def _stateful(numbers: _Numbers, kind: str, layers: int) -> int:
    """Layers without a cache that grows."""
    if kind in _RECURRENT:
        return layers
    if kinds := _kinds(numbers):
        return min(layers, sum(one not in _WINDOWED | _FULL for one in kinds))
    pattern = numbers.values.get("hybrid_override_pattern")  # Nemotron-H: `*` is attention
    if isinstance(pattern, str):
        return max(0, layers - pattern.count("*"))
    every = numbers.get("full_attention_interval", "attn_layer_period")
    return layers - layers // every if every else 0


def facts_of_gguf(gguf: Gguf, weights: Weights, name: str) -> ModelFacts:
    """The facts in a GGUF file's metadata; `weights` sums all its parts. Raises PermanentError SS523 naming
    what is missing or impossible in it."""
    kind = gguf.metadata.get("general.architecture")
    if not isinstance(kind, str):
        raise not_a_model(name, "it does not say which architecture it has")
    prefix = f"{kind}."
    own = {key.removeprefix(prefix): value for key, value in gguf.metadata.items() if key.startswith(prefix)}
    numbers = _Numbers(own, name)
    layers, hidden = numbers.need("block_count"), numbers.need("embedding_length")
    heads = numbers.get("attention.head_count")
    of_head = numbers.get("attention.key_length", default=hidden // heads if heads else 0)
    return ModelFacts(
        source_format="gguf",
        architecture=kind,
        dtype=weights.dtype,
        weight_bytes=weights.bytes,
        parameters=weights.parameters,
        layers=layers,
        hidden_size=hidden,
        intermediate_size=_gguf_feed_forward(numbers, hidden),
        query_heads=heads,
        kv_heads=0 if "bert" in kind else numbers.get("attention.head_count_kv", default=heads),
        head_dim=max(of_head, numbers.get("attention.value_length")),
        vocab_size=numbers.get("vocab_size") or _tokens(gguf),
        max_context=numbers.get("context_length"),
        sliding=_gguf_sliding(numbers, kind, layers),
        latent=_gguf_latent(numbers),
        stateful_layers=_gguf_stateful(numbers, kind, layers),
        quantization="" if weights.dtype in _UNQUANTIZED else weights.dtype,
        uneven=numbers.uneven("attention.head_count_kv") or "attention.key_length_swa" in own,
    )


def _tokens(gguf: Gguf) -> int:
    found = gguf.metadata.get("tokenizer.ggml.tokens")
    return found.length if isinstance(found, ArrayLength) else 0


def _gguf_feed_forward(numbers: _Numbers, hidden: int) -> int:
    dense = numbers.get("feed_forward_length")
    of_expert = numbers.get("expert_feed_forward_length", default=dense)
    shared = numbers.get("expert_shared_feed_forward_length")
    return max(dense, numbers.get("expert_used_count") * of_expert + shared) or 4 * hidden


def _gguf_sliding(numbers: _Numbers, kind: str, layers: int) -> SlidingWindow | None:
    """As llama.cpp reads it: a window counts only for architectures whose layers alternate."""
    window = numbers.get("attention.sliding_window")
    pattern = numbers.values.get("attention.sliding_window_pattern")
    every = _every(pattern) or _FULL_EVERY.get(kind, 0)
    if isinstance(pattern, list):
        windowed = sum(bool(one) for one in pattern)
    else:
        windowed = layers - layers // every if every else 0
    return SlidingWindow(window, min(windowed, layers)) if window and windowed else None


def _gguf_latent(numbers: _Numbers) -> LatentAttention | None:
    """Files converted before llama.cpp cached the latent vector lack the key, and get full heads."""
    if "attention.key_length_mla" not in numbers.values:
        return None
    rank = numbers.get("attention.kv_lora_rank")
    return LatentAttention(rank, numbers.get("rope.dimension_count")) if rank else None


def _gguf_stateful(numbers: _Numbers, kind: str, layers: int) -> int:
    if kind in _RECURRENT:
        return layers
    heads = numbers.values.get("attention.head_count_kv")
    if isinstance(heads, list):
        return min(layers, sum(not one for one in heads))
    every = numbers.get("full_attention_interval")
    return layers - layers // every if every else 0
