"""Facts of models on disk: published configs, whole folders, and files that are damaged or hostile."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.fit import LatentAttention, ModelFacts, SlidingWindow
from servestate.providers.model_config import facts_of_config
from servestate.providers.model_facts import read_model_facts
from servestate.providers.model_files import Weights
from servestate.providers.protocol import PermanentError
from tests.providers.model_heads import (
    LLAMA_8B,
    TINY_GGUF,
    gguf_head,
    gguf_text,
    gguf_value,
    safetensors_head,
    write_safetensors,
    write_sparse,
)

WEIGHTS = Weights(1000, 500, "bfloat16")
TENSORS = {"a.weight": ("BF16", [10, 20], 400), "b.weight": ("BF16", [5], 10), "c.scale": ("F32", [2], 8)}


def read(path: Path):
    return read_model_facts(f"file://{path}", Path("/"), offline=True, environ={})


def refusal(path: Path) -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        read(path)
    return caught.value


def outcome(reading: Callable[[], ModelFacts]) -> ModelFacts | str:
    """The facts, or the code of the one kind of error that is allowed."""
    try:
        return reading()
    except PermanentError as error:
        return error.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of one safetensors file."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    return tmp_path


@pytest.mark.parametrize("source", ["", "model.safetensors"])
def test_a_folder_and_a_file_with_its_config(folder: Path, source: str) -> None:
    facts = read(folder / source)
    assert (facts.source_format, facts.architecture) == ("safetensors", "LlamaForCausalLM")
    assert (facts.weight_bytes, facts.parameters, facts.dtype) == (418, 207, "bfloat16")
    assert (facts.layers, facts.kv_heads, facts.head_dim, facts.query_heads) == (32, 8, 128, 32)
    assert (facts.hidden_size, facts.intermediate_size, facts.vocab_size) == (4096, 14336, 128_256)
    assert facts.max_context == 131_072
    assert not facts.multimodal


def test_a_relative_source_starts_at_the_bundle(folder: Path) -> None:
    facts = read_model_facts("file://model.safetensors", folder, offline=True, environ={})
    assert facts.weight_bytes == 418


def test_shards_are_summed_where_they_are_all_there_else_the_index_tells(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    shards = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}
    index = {"metadata": {"total_size": 777, "total_parameters": 300}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_safetensors(folder / "model-1.safetensors", {"a.weight": ("F8_E4M3", [100], 100)})
    facts = read(folder)
    assert (facts.weight_bytes, facts.parameters, facts.dtype) == (777, 300, "bfloat16")
    write_safetensors(folder / "model-2.safetensors", {"b.weight": ("BF16", [10], 20)})
    facts = read(folder)
    assert (facts.weight_bytes, facts.parameters, facts.dtype) == (120, 110, "float8_e4m3fn")


@pytest.mark.parametrize("name", ["../model-1.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin"])
def test_an_index_names_files_of_its_own_folder_only(folder: Path, name: str) -> None:
    index = {"metadata": {}, "weight_map": {"a.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(folder).code == "SS523"


CONFIGS = {
    "Qwen2.5 7B": (
        {
            "model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
            "sliding_window": 131_072, "use_sliding_window": False, "max_window_layers": 28,
            "max_position_embeddings": 32_768,
        },
        {"kv_heads": 4, "head_dim": 128, "sliding": None, "max_context": 32_768, "multimodal": False},
    ),
    "Qwen2.5 7B, stretched": (
        {
            "model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28,
            "max_position_embeddings": 32_768,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
        },
        {"max_context": 131_072, "kv_heads": 28, "intermediate_size": 4 * 3584},
    ),
    "Gemma 3 27B": (
        {
            "model_type": "gemma3", "vision_config": {"hidden_size": 1152},
            "text_config": {
                "model_type": "gemma3_text", "num_hidden_layers": 62, "hidden_size": 5376,
                "intermediate_size": 21504, "num_attention_heads": 32, "num_key_value_heads": 16,
                "head_dim": 128, "sliding_window": 1024, "max_position_embeddings": 131_072,
            },
        },
        {
            "layers": 62, "kv_heads": 16, "head_dim": 128, "sliding": SlidingWindow(1024, 52),
            "multimodal": True, "vocab_size": 262_208, "full_layers": 10,
        },
    ),
    "Gemma 3 4B leaves out the defaults of its class": (
        {
            "model_type": "gemma3",
            "text_config": {"num_hidden_layers": 34, "hidden_size": 2560, "intermediate_size": 10_240,
                            "sliding_window": 1024},
        },
        {"query_heads": 8, "kv_heads": 4, "head_dim": 256, "sliding": SlidingWindow(1024, 29)},
    ),
    "layers listed by kind": (
        {
            "num_hidden_layers": 6, "hidden_size": 640, "num_attention_heads": 4, "num_key_value_heads": 1,
            "head_dim": 256, "sliding_window": 512,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        },
        {"sliding": SlidingWindow(512, 5), "full_layers": 1, "stateful_layers": 0},
    ),
    "Mistral 7B v0.1: every layer has a window": (
        {
            "model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
            "num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 32_768,
        },
        {"sliding": SlidingWindow(4096, 32), "full_layers": 0},
    ),
    "Mixtral 8x7B": (
        {
            "model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096,
            "intermediate_size": 14_336, "num_attention_heads": 32, "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2, "sliding_window": None,
        },
        {"intermediate_size": 28_672, "sliding": None, "kv_heads": 8},
    ),
    "DeepSeek V3": (
        {
            "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168,
            "intermediate_size": 18_432, "moe_intermediate_size": 2048, "num_experts_per_tok": 8,
            "n_shared_experts": 1, "num_attention_heads": 128, "num_key_value_heads": 128,
            "kv_lora_rank": 512, "qk_rope_head_dim": 64, "max_position_embeddings": 163_840,
            "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            "quantization_config": {"quant_method": "fp8"},
        },
        {
            "latent": LatentAttention(512, 64), "intermediate_size": 18_432, "max_context": 163_840,
            "quantization": "fp8",
        },
    ),
    "Qwen3-Next: every fourth layer attends": (
        {
            "model_type": "qwen3_next", "num_hidden_layers": 48, "hidden_size": 2048,
            "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
            "full_attention_interval": 4,
        },
        {"stateful_layers": 36, "full_layers": 12},
    ),
    "Nemotron-H": (
        {"num_hidden_layers": 8, "hidden_size": 64, "num_attention_heads": 4,
         "hybrid_override_pattern": "M-M-M*M-"},
        {"stateful_layers": 7},
    ),
    "BERT": ({"model_type": "bert", "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12},
             {"kv_heads": 0}),
    "GPT-2": ({"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024},
              {"layers": 12, "head_dim": 64, "max_context": 1024, "intermediate_size": 3072}),
    "heads that differ from layer to layer": (
        {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4,
         "num_key_value_heads": [1, 2, 4]},
        {"kv_heads": 4, "uneven": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_published_configs(config: dict, expected: dict) -> None:
    facts = facts_of_config(config, WEIGHTS, "config.json")
    assert {key: getattr(facts, key) for key in expected} == expected


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": None},
        {"num_hidden_layers": 0},
        {"hidden_size": "4096"},
        {"num_key_value_heads": -8},
        {"vocab_size": 1 << 60},
        {"num_key_value_heads": [[8]]},
    ],
)
def test_a_config_that_lacks_or_bends_a_number_is_refused_by_name(change: dict) -> None:
    with pytest.raises(PermanentError) as caught:
        facts_of_config({**LLAMA_8B, **change}, WEIGHTS, "config.json")
    assert caught.value.code == "SS523"
    assert next(iter(change)) in caught.value.what


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CONFIG_KEYS = sorted({key for config, _ in CONFIGS.values() for key in config} | set(LLAMA_8B))


@given(st.dictionaries(st.sampled_from(CONFIG_KEYS), json_values, max_size=4))
def test_a_strange_config_gives_facts_or_one_kind_of_error(strange: dict) -> None:
    found = outcome(lambda: facts_of_config({**LLAMA_8B, **strange}, WEIGHTS, "config.json"))
    assert found == "SS523" or 0 <= found.full_layers <= found.layers


def test_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tensors = {"output": (1, [64, 3], 0), "blk.0": (12, [256, 2], 384)}  # 192 F16 values, 2 blocks of Q4_K
    head = gguf_head(TINY_GGUF, tensors)
    write_sparse(path, head, 32 + 384 + 288)
    facts = read(path)
    assert (facts.source_format, facts.architecture, facts.dtype) == ("gguf", "llama", "F16")
    assert (facts.weight_bytes, facts.parameters) == (672, 704)
    assert (facts.layers, facts.hidden_size, facts.kv_heads, facts.head_dim) == (2, 64, 2, 16)
    assert (facts.vocab_size, facts.max_context, facts.intermediate_size) == (3, 1024, 256)
    assert read(tmp_path) == facts


def test_parts_of_a_gguf_model_are_summed(tmp_path: Path) -> None:
    for part, metadata in ((1, TINY_GGUF), (2, {"split.no": 1})):
        head = gguf_head(metadata, {f"blk.{part}": (0, [100], 0)})
        write_sparse(tmp_path / f"big-0000{part}-of-00002.gguf", head, 432)
    assert read(tmp_path).weight_bytes == 800
    assert read(tmp_path / "big-00001-of-00002.gguf").weight_bytes == 800
    (tmp_path / "big-00002-of-00002.gguf").unlink()
    assert "big-00002-of-00002.gguf" in refusal(tmp_path).what


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"general.architecture": "gemma3", "gemma3.attention.sliding_window": 512}, SlidingWindow(512, 15)),
        (
            {
                "general.architecture": "gemma3",
                "gemma3.attention.sliding_window": 512,
                "gemma3.attention.sliding_window_pattern": [True] * 12 + [False] * 6,
            },
            SlidingWindow(512, 12),
        ),
        (
            {"general.architecture": "llama", "llama.attention.sliding_window": 4096},
            None,
        ),  # it does not use it
    ],
)
def test_windows_of_gguf_files(tmp_path: Path, metadata: dict, expected: SlidingWindow | None) -> None:
    kind = metadata["general.architecture"]
    sizes = {"block_count": 18, "embedding_length": 640, "attention.head_count": 4}
    metadata = {**metadata, **{f"{kind}.{key}": value for key, value in sizes.items()}}
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_head(metadata, {}))
    assert read(path).sliding == expected


def test_several_quantizations_have_to_be_chosen_from(tmp_path: Path) -> None:
    for name in ("m-q4.gguf", "m-q8.gguf"):
        (tmp_path / name).write_bytes(gguf_head(TINY_GGUF, {}))
    found = refusal(tmp_path)
    assert found.code == "SS523"
    assert "m-q4.gguf, m-q8.gguf" in found.what
    assert "name one" in found.fix


@pytest.mark.parametrize(
    "source",
    [
        "",
        "model",
        "models:/name",
        "s3://bucket/model",
        "hf://name",
        "hf://a/../b",
        "hf://a/b/../c.gguf",
        "file://",
    ],
)
def test_a_source_of_another_form_is_refused(source: str) -> None:
    with pytest.raises(PermanentError) as caught:
        read_model_facts(source, Path("/"), offline=True, environ={})
    assert (caught.value.code, "hf://ORGANISATION/NAME" in caught.value.fix) == ("SS520", True)


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert "gone.gguf" in refusal(tmp_path / "gone.gguf").what
    assert "neither config.json" in refusal(tmp_path).what
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    assert "config.json" in refusal(tmp_path / "model.safetensors").what


def entry(**changes) -> bytes:
    """A safetensors head of one tensor that is described wrongly."""
    described = {"dtype": "BF16", "shape": [10], "data_offsets": [0, 20], **changes}
    text = json.dumps({"a.weight": described}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 20


HOSTILE_SAFETENSORS = {
    "empty": b"",
    "cut in its length": b"\1\0\0",
    "a header of 2^63 bytes": (1 << 63).to_bytes(8, "little") + b"{}",
    "a header of 100 MB and 1": (100_000_001).to_bytes(8, "little") + b"{}",
    "cut in its header": safetensors_head(TENSORS)[:-5],
    "cut in its tensors": safetensors_head(TENSORS) + b"\0" * 417,
    "a page of HTML": b"<!doctype html><html>" * 10,
    "a pointer of git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "not JSON": (4).to_bytes(8, "little") + b"abcd",
    "not an object": (2).to_bytes(8, "little") + b"[]",
    "not UTF-8": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    "nested": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "nested in an object": (500_000).to_bytes(8, "little") + b'{"a":' * 100_000,
    "a number of a million digits": (1_000_006).to_bytes(8, "little") + b'{"a":' + b"9" * 1_000_000 + b"}",
    "negative offsets": entry(data_offsets=[-20, 0]),
    "offsets the wrong way": entry(data_offsets=[20, 0]),
    "offsets beyond the file": entry(data_offsets=[0, 1 << 60]),
    "three offsets": entry(data_offsets=[0, 10, 20]),
    "offsets of text": entry(data_offsets=["0", "20"]),
    "a negative shape": entry(shape=[-10]),
    "a shape of booleans": entry(shape=[True]),
    "a shape of 2^80": entry(shape=[1 << 80]),
    "no type": entry(dtype=None),
}


@pytest.mark.parametrize("content", HOSTILE_SAFETENSORS.values(), ids=HOSTILE_SAFETENSORS)
def test_hostile_safetensors(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert_refused_cheaply(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"weight_map": []}', b'{"weight_map": {}}'],
)
def test_hostile_json_files(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert_refused_cheaply(folder)


def test_an_index_of_gigabytes_is_not_read(folder: Path) -> None:
    write_sparse(folder / "model.safetensors.index.json", b"{", 1 << 40)
    assert_refused_cheaply(folder)


def start(tensors: int, entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def array(kind: int, length: int) -> bytes:
    return start(0, 1) + gguf_text("a") + struct.pack("<IIQ", 9, kind, length)


HOSTILE_GGUF = {
    "empty": b"",
    "another magic": b"GGML" + bytes(100),
    "cut in its head": gguf_head(TINY_GGUF, {})[:-3],
    "version 1": start(0, 0, 1),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "10^9 strings": array(8, 10**9) + bytes(1000),
    "10^6 strings in a short file": array(8, 10**6) + bytes(1000),
    "2^64 - 1 numbers": array(4, (1 << 64) - 1),
    "an array of arrays": array(9, 1) + struct.pack("<IQ", 9, 1) * 100,
    "an array of what is not known": array(77, 1),
    "10^9 metadata keys": start(0, 10**9),
    "10^9 tensors": start(10**9, 0) + bytes(1000),
    "a string of 2^62 bytes": start(0, 1) + struct.pack("<Q", 1 << 62),
    "a string of 90 MB in a short file": start(0, 1) + struct.pack("<Q", 90_000_000),
    "metadata of no known type": start(0, 1) + gguf_text("a") + struct.pack("<I", 99),
    "tensor of no known type": gguf_head(TINY_GGUF, {"a": (1000, [1], 0)}),
    "tensor of 2^60 values": gguf_head(TINY_GGUF, {"a": (0, [1 << 60], 0)}),
    "tensor of 2^32 dimensions": start(1, 0) + gguf_text("a") + struct.pack("<I", (1 << 32) - 1),
    "tensors beyond the file": gguf_head(TINY_GGUF, {"a": (0, [1 << 20], 0)}) + bytes(100),
    "tensor that begins beyond the file": gguf_head(TINY_GGUF, {"a": (0, [1], 1 << 50)}) + bytes(100),
    "alignment 0": gguf_head({**TINY_GGUF, "general.alignment": 0}, {}),
    "alignment of text": gguf_head({**TINY_GGUF, "general.alignment": "32"}, {}),
    "no architecture": gguf_head({"llama.block_count": 2}, {}),
    "no layers": gguf_head({"general.architecture": "llama"}, {}),
    "layers of text": gguf_head({**TINY_GGUF, "llama.block_count": "2"}, {}),
    "layers of a long list": gguf_head({**TINY_GGUF, "llama.block_count": [1] * 5000}, {}),
    "head count of fractions": gguf_head({**TINY_GGUF, "llama.attention.head_count": 1.5}, {}),
}


@pytest.mark.parametrize("content", HOSTILE_GGUF.values(), ids=HOSTILE_GGUF)
def test_hostile_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert_refused_cheaply(path)


def test_a_head_that_goes_on_for_ever_is_given_up(tmp_path: Path) -> None:
    """120 MB of arrays, and a terabyte to come."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(start(0, 60_000))
        for _ in range(60):
            file.write(gguf_text("a") + struct.pack("<IIQ", 9, 0, 2_000_000))
            file.seek(2_000_000, 1)
        file.truncate(1 << 40)
    assert "longer than" in assert_refused_cheaply(path).what


@given(st.binary(max_size=300), st.integers(0, 300))
def test_damaged_gguf_gives_facts_or_one_kind_of_error(tmp_path_factory, damage: bytes, at: int) -> None:
    whole = gguf_head(TINY_GGUF, {"a": (0, [4], 0)}) + bytes(64)
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(whole[:at] + damage + whole[at + len(damage) :])
    found = outcome(lambda: read(path))
    assert found == "SS523" or found.source_format == "gguf"


def assert_refused_cheaply(path: Path) -> PermanentError:
    """SS523, in a blink, and with memory in proportion to what is really there."""
    tracemalloc.start()
    begun = time.monotonic()
    try:
        found = refusal(path)
        took = time.monotonic() - begun
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.code == "SS523"
    assert found.fix
    assert len(found.what) < 1000
    assert took < 2
    assert peak < 32_000_000
    return found


def test_gguf_values_are_what_the_builder_of_these_tests_says() -> None:
    assert gguf_value(["ab"]) == struct.pack("<IIQQ", 9, 8, 1, 2) + b"ab"
