"""Does a model fit on a GPU: what its headers say, and what its engine is asked for -> bytes of one GPU.

The arithmetic is the engines' own (`fit_engines`): vLLM takes a share of the GPU and gives the KV cache what
weights, peak activation, non-torch memory and CUDA graphs leave of it; llama.cpp allocates the cache of its
whole context at the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from servestate.planner.fit_engines import (
    ENGINES,
    GIB,
    KV_BYTES_OF_32,
    EngineMemory,
)
from servestate.planner.fit_facts import Asked, LatentAttention, Measured, ModelFacts, SlidingWindow
from servestate.planner.plural import counted

__all__ = [
    "Asked", "Estimate", "LatentAttention", "Measured", "ModelFacts", "SlidingWindow", "Sureness",
    "estimate", "explain",
]  # fmt: skip


class Sureness(StrEnum):
    """How far the estimate may be off: about 10 %, about 20 %, or more."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


_WORDS = {
    Sureness.HIGH: "estimate sure within 10 %",
    Sureness.MEDIUM: "estimate sure within 20 %",
    Sureness.LOW: "rough estimate",
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one GPU must hold. `gpu_memory` 0: not known, so nothing was compared and `fits` is true.

    `kv_per_token` is what one more token costs while no window is full; `kv` the cache of one sequence of
    `context` tokens, or of the whole context where the engine allocates it at the start. `needed` is the
    least that must be there, `claimed` what the engine takes (vLLM: its share, whatever it needs).
    `longest_context` is the longest that fits, 0 where the weights alone do not. `concurrency` counts
    sequences of full length at once, 0 where not one fits.
    """

    engine: str
    gpu_memory: int
    context: int
    weights: int
    kv_per_token: int
    kv: int
    activations: int
    overhead: int
    needed: int
    claimed: int
    fits: bool
    longest_context: int
    concurrency: float
    sureness: Sureness
    notes: tuple[str, ...]

    def missing(self, free: int) -> int:
        """Bytes that a GPU with `free` bytes lacks for the engine to start: vLLM refuses unless its whole
        share is free, also where it needs less; 0 when it starts."""
        return max(0, self.claimed - free)


@dataclass(frozen=True, slots=True)
class _Sum:
    """The parts at one context, and whether they fit."""

    weights: int
    kv: int
    activations: int
    overhead: int
    budget: int
    reserved: int
    total: int

    @property
    def rest(self) -> int:
        return self.weights + self.activations + self.overhead

    @property
    def needed(self) -> int:
        return self.rest + self.kv

    @property
    def room(self) -> int:
        """Bytes for the cache."""
        return self.reserved or self.budget - self.rest

    @property
    def fits(self) -> bool:
        return self.kv <= self.room and self.rest + self.reserved <= self.total


def estimate(facts: ModelFacts, asked: Asked, gpu_memory: int) -> Estimate:
    """What one GPU of `gpu_memory` bytes (0: no GPU, or not known) must hold for `asked`, and whether it can.
    The same arguments give the same estimate."""
    engine = ENGINES.get(asked.engine, EngineMemory)(facts, asked, gpu_memory)
    context = asked.context or facts.max_context
    parts = _sum(engine, context)
    doubts = [*_doubts(facts, asked, gpu_memory, context), *_guesses(engine, parts)]
    fits = parts.fits or not gpu_memory
    return Estimate(
        engine=asked.engine,
        gpu_memory=gpu_memory,
        context=context,
        weights=parts.weights,
        kv_per_token=engine.full() + engine.windowed(),
        kv=parts.kv,
        activations=parts.activations,
        overhead=parts.overhead,
        needed=parts.needed,
        claimed=_claimed(engine, parts),
        fits=fits,
        # The search goes in whole blocks, and what was asked for may lie within the last one.
        longest_context=max(_longest(engine), context * parts.fits) if gpu_memory else engine.longest,
        concurrency=_concurrency(engine, parts) if fits else 0.0,
        sureness=max((level for level, _ in doubts), key=list(Sureness).index, default=Sureness.HIGH),
        notes=tuple(note for _, note in doubts),
    )


def _sum(engine: EngineMemory, context: int) -> _Sum:
    measured = engine.asked.measured
    return _Sum(
        weights=measured.weights if measured else engine.weights(),
        kv=engine.kv(context),
        activations=measured.activations if measured else engine.activations(context),
        overhead=measured.overhead if measured else engine.overhead(),
        budget=engine.budget,
        reserved=engine.reserved,
        total=engine.gpu_memory,
    )


def _claimed(engine: EngineMemory, parts: _Sum) -> int:
    if parts.reserved:
        return parts.rest + parts.reserved
    return parts.budget if engine.takes_its_share and engine.gpu_memory else parts.needed


def _longest(engine: EngineMemory) -> int:
    """Halving: the need never falls as the context grows."""
    step = engine.step
    if _sum(engine, engine.longest).fits:
        return engine.longest
    low, high = 0, -(-engine.longest // step)  # in steps: low fits or is 0, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _sum(engine, middle * step).fits else (low, middle)
    return low * step


def _concurrency(engine: EngineMemory, parts: _Sum) -> float:
    """The room for the cache over what one sequence takes, as vLLM logs it; elsewhere the slots."""
    if engine.takes_its_share and engine.gpu_memory and parts.kv:
        return parts.room / parts.kv
    return float(engine.slots)


def _doubts(facts: ModelFacts, asked: Asked, gpu_memory: int, context: int) -> Iterator[tuple[Sureness, str]]:
    """Why the estimate may be off, in plain words."""
    if asked.engine not in ENGINES:
        yield Sureness.LOW, f'how engine "{asked.engine}" uses memory is not known'
    elif asked.engine == "transformers":
        yield Sureness.MEDIUM, "transformers allocates as it goes"
    elif asked.engine == "llamacpp" and not gpu_memory:
        yield Sureness.HIGH, "its prompt cache may take up to 8 GiB more"
    if not context:
        yield Sureness.LOW, "no KV cache counted: neither the model nor the request names a context"
    elif facts.max_context and context > facts.max_context and asked.engine != "llamacpp":
        yield Sureness.MEDIUM, f"the model was made for {facts.max_context:,} tokens"
    if facts.stateful_layers:
        yield Sureness.LOW, f"the state of {counted(facts.stateful_layers, 'recurrent layer')} is not counted"
    if facts.uneven:
        yield Sureness.LOW, "its layers differ: the largest is taken for all"
    if facts.latent is not None:
        yield Sureness.MEDIUM, "latent attention: engines lay it out differently"
    if facts.sliding is not None and asked.engine != "llamacpp":
        yield Sureness.MEDIUM, f"{counted(facts.sliding.layers, 'layer')} with a sliding window"
    if facts.multimodal:
        yield Sureness.MEDIUM, "activations of images or audio are not counted"
    if asked.quantization and asked.quantization != facts.quantization:
        yield Sureness.MEDIUM, f"quantized to {asked.quantization} while it loads"
    if asked.kv_cache_dtype not in KV_BYTES_OF_32:
        yield Sureness.LOW, f'KV cache type "{asked.kv_cache_dtype}" is not known, 16-bit assumed'
    if asked.pipeline_parallel > 1:
        yield Sureness.MEDIUM, "pipeline stages need not be equal"


def _guesses(engine: EngineMemory, parts: _Sum) -> Iterator[tuple[Sureness, str]]:
    """Weights and cache are counted, the rest is typical: off by 40 %, it alone is off by a tenth of the sum
    where it is a quarter of it, as with small models."""
    typical = 0 if engine.asked.measured else parts.activations + parts.overhead
    if engine.gpu_memory and 4 * typical > parts.needed:
        yield Sureness.MEDIUM, "activations and graphs are a large part of it"


def explain(estimate: Estimate) -> str:
    """One line for a plan, sizes in GiB; where it does not fit, it ends in what to do."""
    rest = estimate.activations + estimate.overhead
    takes = f" and takes {_gib(estimate.claimed)}" if estimate.claimed > estimate.needed else ""
    of = f"{takes} of {_gib(estimate.gpu_memory)} GiB per GPU" if estimate.gpu_memory else " GiB"
    parts = [
        f"needs {_gib(estimate.needed)}{of}: weights {_gib(estimate.weights)}, "
        f"KV cache {_gib(estimate.kv)} ({estimate.context:,} tokens), activations and graphs {_gib(rest)}"
    ]
    if estimate.fits and estimate.gpu_memory:
        parts.append(f"{counted(int(estimate.concurrency), 'sequence')} at full length")
    notes = f" ({'; '.join(estimate.notes)})" if estimate.notes else ""
    parts.append(f"{_WORDS[estimate.sureness]}{notes}")
    if not estimate.fits:
        parts.append(_remedy(estimate))
    return "; ".join(parts)


def _remedy(estimate: Estimate) -> str:
    if not estimate.longest_context and estimate.claimed < estimate.needed <= estimate.gpu_memory:
        share = math.ceil(100 * estimate.needed / estimate.gpu_memory) / 100
        where = f"in the {_gib(estimate.claimed)} GiB that {estimate.engine} may use"
        return f"does not fit {where}: give it {share:g} of the GPU (gpu_memory_utilization, gpu_fraction)"
    if not estimate.longest_context:
        return "does not fit, whatever the context: use more or larger GPUs, or a smaller or quantized model"
    key = {"vllm": "max_model_len", "llamacpp": "ctx_size"}.get(estimate.engine, "the context")
    may_use = f" in the {_gib(estimate.claimed)} GiB that vLLM may use" if estimate.engine == "vllm" else ""
    longest = f"the longest context that fits is {estimate.longest_context:,} tokens"
    return f"does not fit{may_use}: {longest}: set {key} to that"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
