"""Model files that are all head: what a reader of headers may look at is real, the weights are holes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rope_scaling": {"factor": 8.0, "rope_type": "llama3", "original_max_position_embeddings": 8192},
    "torch_dtype": "bfloat16",
}
TINY_GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 256,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 1024,
    "tokenizer.ggml.tokens": ["<s>", "a", "b"],
}
_GGUF_TYPES = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


def safetensors_head(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """The head of a safetensors file; `tensors` maps a name to its type, shape and bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    write_sparse(path, safetensors_head(tensors), sum(size for _, _, size in tensors.values()))


def write_sparse(path: Path, head: bytes, more: int) -> None:
    """`head`, then a hole of `more` bytes."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + more)


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(value: Any) -> bytes:
    """Type and value, as metadata holds them."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_text(value)
    if isinstance(value, list):
        items = [gguf_value(one) for one in value]
        return (
            struct.pack("<I", 9)
            + items[0][:4]
            + struct.pack("<Q", len(items))
            + b"".join(i[4:] for i in items)
        )
    kind, code = _GGUF_TYPES[type(value)]
    return struct.pack(f"<I{code}", kind, value)


def gguf_head(
    metadata: dict[str, Any], tensors: dict[str, tuple[int, list[int], int]], version: int = 3
) -> bytes:
    """The head of a GGUF file; `tensors` maps a name to its type, shape and offset in the data."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(gguf_text(key) + gguf_value(value) for key, value in metadata.items())
    for name, (kind, shape, offset) in tensors.items():
        head += gguf_text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)
    return head
