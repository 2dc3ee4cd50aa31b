"""Make the models that real engines load: small ones of random weights, since none can be downloaded.

Run by the interpreter of an engine's own environment: `python make_models.py KIND FOLDER`. The tokenizer has
a token for every byte, so any text can be asked; what a model answers is noise, but the same noise each time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SEED = 20261121


def llama(
    folder: Path, hidden: int, layers: int, heads: int, kv_heads: int, context: int, dtype: str
) -> None:
    """A Llama with tied embeddings, its feed-forward layers four times as wide as its hidden ones."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    tokenizer = byte_tokenizer()
    set_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_tokenizer():  # type: ignore[no-untyped-def]  # transformers is not in the checkers' environment
    """One token a byte, and the few that a chat needs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    )


def tiny(folder: Path) -> None:
    """Loads at once: 0.1 million parameters, 8,192 tokens of context."""
    llama(folder, hidden=64, layers=2, heads=2, kv_heads=1, context=8192, dtype="float32")


def half_billion(folder: Path) -> None:
    """Large enough that weights outweigh everything else of an engine: 0.5 billion parameters in bfloat16."""
    llama(folder, hidden=1280, layers=20, heads=20, kv_heads=4, context=8192, dtype="bfloat16")


KINDS: dict[str, Callable[[Path], None]] = {
    "tiny": tiny,
    "half-billion": half_billion,
}


def main() -> None:
    kind, folder = sys.argv[1:]
    KINDS[kind](Path(folder))


if __name__ == "__main__":
    main()
