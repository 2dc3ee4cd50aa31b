"""Why an engine ended, in words a person can act on, and with a code. Pure.

SS506 it ended, SS511 out of memory, SS512 no GPU or driver, SS513 the model cannot be had or loaded, SS514
the port is taken, SS515 no space left. The messages are those of vLLM, PyTorch, transformers, the Hugging
Face hub, llama.cpp, MLflow and Docker.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

ENDED, MEMORY, DRIVER, MODEL, PORT, SPACE = "SS506", "SS511", "SS512", "SS513", "SS514", "SS515"


@dataclass(frozen=True, slots=True)
class Cause:
    """A diagnostic code and what to say; `text` is "" where nothing is known but that it ended."""

    code: str
    text: str


_UNKNOWN = Cause(ENDED, "")

RECENT = 20
"""Last log lines that are all judged. Of those before them only the last lines of tracebacks are: a server of
several processes reports at length that one of them failed, after that one has told why."""
_RAISED = re.compile(r"(?:\A|[\s.])\w*(?:Error|Exception): ")

# The first pattern that matches a line wins, so the more particular ones come first.
_CAUSES = tuple(
    (re.compile(pattern, re.IGNORECASE), code, text)
    for pattern, code, text in (
        (r"address already in use|couldn't bind|failed to bind|EADDRINUSE", PORT, "the port is taken"),
        (
            r"insufficient shared memory|No space left on device.*/dev/shm|/dev/shm.*No space left",
            MEMORY,
            "shared memory is full: give the container a larger shm_size",
        ),
        (r"No space left on device|Disk quota exceeded", SPACE, "the disk is full"),
        (
            r"Free memory on device.*?\(([\d.]+)/([\d.]+) GiB\).*is less than.*?\(([\d.]+), ([\d.]+) GiB\)",
            MEMORY,
            "only {0} of the GPU's {1} GiB are free and it wants {3}: something else holds the rest, or"
            " gpu_memory_utilization ({2}) is too high",
        ),
        (
            r"No available memory for the cache blocks",
            MEMORY,
            "its share of the memory leaves none for the KV cache: raise gpu_memory_utilization, or use a"
            " smaller model or more GPUs",
        ),
        (
            r"To serve at least one request .*?max seq len \((\d+)\)\D*([\d.]+) GiB"
            r".*maximum model length is (\d+)",
            MODEL,
            "one request of {0} tokens needs {1} GiB of KV cache, and there is room for {2} tokens: set"
            " max_model_len",
        ),
        (
            r"To serve at least one request .*?max seq len \((\d+)\)\D*([\d.]+) GiB",
            MODEL,
            "one request of {0} tokens needs {1} GiB of KV cache, more than there is: set max_model_len",
        ),
        (
            r"max_model_len \((\d+)\) is greater than the derived max_model_len \(\D*(\d+)",
            MODEL,
            "max_model_len is {0}, and the model was made for {1} tokens",
        ),
        (
            r"CUDA out of memory|CUDA error: out of memory|cudaErrorMemoryAllocation|cudaMalloc failed"
            r"|OutOfMemoryError|HIP out of memory",
            MEMORY,
            "out of memory on the GPU",
        ),
        (
            r"out of memory|bad_alloc|cannot allocate memory|not enough memory|MemoryError"
            r"|failed to allocate",
            MEMORY,
            "out of memory",
        ),
        (
            r"CUDA driver version is insufficient|driver on your system is too old"
            r"|unsatisfied condition: cuda",
            DRIVER,
            "the GPU's driver is too old for this engine",
        ),
        (
            r"could not select device driver|nvidia-container-cli|Found no NVIDIA driver|libcuda\.so\.1"
            r"|libnvidia-ml\.so|No CUDA GPUs are available|no CUDA-capable device"
            r"|Failed to infer device type",
            DRIVER,
            "it finds no GPU: the driver, or the container toolkit of Docker, is missing",
        ),
        (
            r"gated repo|GatedRepo|Access to model .* is restricted|awaiting a review from the repo",
            MODEL,
            "the model is gated: accept its terms on the hub and give a token of that user in HF_TOKEN",
        ),
        (r"RevisionNotFound|Invalid rev id", MODEL, "the hub does not have this revision of the model"),
        (
            r"RepositoryNotFound|Repository Not Found|(?:401|404) Client Error"
            r"|is not a valid model identifier|Invalid repository ID or local directory",
            MODEL,
            "the hub has no such model, or HF_TOKEN does not give access to it",
        ),
        (
            r"couldn't connect to .*(?:huggingface|hf\.co)|LocalEntryNotFound|OfflineModeIsEnabled"
            r"|Cannot reach https://huggingface",
            MODEL,
            "the model is not in the cache, and the hub cannot be reached",
        ),
        (
            r"Model architectures? .*not supported|does not recognize this architecture"
            r"|unknown model architecture|has no vLLM implementation",
            MODEL,
            "this version of the engine does not know the model's architecture",
        ),
        (
            r"`trust_remote_code ?= ?True`|`--trust-remote-code`",
            MODEL,
            "the model brings code of its own: set trust_remote_code if you trust its authors",
        ),
        (
            r'Could not find an "MLmodel"|No such artifact|RESOURCE_DOES_NOT_EXIST'
            r"|Registered Model .*not found",
            MODEL,
            "there is no such MLflow model",
        ),
        (
            r"failed to load model|error loading model|failed to open GGUF|no such model|SafetensorError"
            r"|Error while deserializing header|no file named .*(?:safetensors|\.bin)"
            r"|Cannot find any model weights|IncompleteBody|size mismatch for",
            MODEL,
            "the model could not be loaded",
        ),
        (r"No module named '?([\w.]+)'?", ENDED, "the Python module {0} is missing"),
        (r"unrecognized arguments: (.+)", ENDED, "the engine does not know these arguments: {0}"),
        (r"No such option:? ['\"]?(--?[\w-]+)", ENDED, "the engine does not know these arguments: {0}"),
        (r"command not found|executable file not found", ENDED, "a command is missing"),
        (r"No such file or directory", ENDED, "a file is missing"),
        (r"Read-only file system", ENDED, "it writes where its container is read-only"),
        (r"Permission denied", ENDED, "a file or port may not be used"),
    )
)
_BY_SIGNAL = {
    signal.SIGKILL: "killed from outside, often for want of memory",
    signal.SIGSEGV: "it crashed",
    signal.SIGABRT: "it gave up",
    signal.SIGILL: "built for another kind of CPU",
}


def ended(code: int | None, number: int | None, log: Sequence[str], oom: bool = False) -> Cause:
    """How it ended with the likely cause: `exit code 1: out of memory`. `log` are its last lines, `oom` says
    that the kernel killed something of it for want of memory, as a container runtime knows."""
    cause = Cause(MEMORY, "out of memory: it reached its limit") if oom else likely_cause(code, number, log)
    headline = how_it_ended(code, number)
    return Cause(cause.code, f"{headline}: {cause.text}" if cause.text else headline)


def how_it_ended(code: int | None, number: int | None) -> str:
    """`exit code 3`, or `signal 9 (SIGKILL)`. A code over 128 is a shell's way to say signal."""
    if number is not None:
        return f"signal {number} ({_signal_name(number)})"
    if code is not None and code > 128:
        return f"exit code {code} (a child died of {_signal_name(code - 128)})"
    return f"exit code {code}"


def likely_cause(code: int | None, number: int | None, log: Sequence[str]) -> Cause:
    """The likely cause by the last log lines, newest first, then by the signal."""
    raised = (line for line in reversed(log[:-RECENT]) if _RAISED.search(line))
    for line in (*reversed(log[-RECENT:]), *raised):
        if cause := _told(line):
            return cause
    if number is None and code is not None and code > 128:
        number = code - 128
    return next((Cause(ENDED, text) for known, text in _BY_SIGNAL.items() if known == number), _UNKNOWN)


def _told(line: str) -> Cause | None:
    for pattern, code, text in _CAUSES:
        if match := pattern.search(line):
            return Cause(code, text.format(*match.groups()))
    return None


def with_log(headline: str, log: Sequence[str], lines: int) -> str:
    """The headline, and under it the last `lines` log lines."""
    shown = [line.rstrip() for line in log if line.strip()][-lines:]
    return "\n".join([headline, *(f"| {line}" for line in shown)])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
