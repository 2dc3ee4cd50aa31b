"""How an engine ended, in words and with a code. The log lines are those of real engines."""

from __future__ import annotations

import pytest

from servestate.providers.cause import Cause, ended, how_it_ended, likely_cause, with_log

KILLED = "killed from outside, often for want of memory"
NO_GPU = "it finds no GPU: the driver, or the container toolkit of Docker, is missing"
NO_ROOM = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is"
    " needed, which is larger than the available KV cache memory (4.54 GiB). "
)
TOLD = [
    ("OSError: [Errno 98] Address already in use", "SS514", "the port is taken"),
    ("CUDA out of memory. Tried to allocate 2 GiB", "SS511", "out of memory on the GPU"),
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total",
        "SS511",
        "out of memory on the GPU",
    ),
    ("terminate called after throwing an instance of 'std::bad_alloc'", "SS511", "out of memory"),
    (
        "(EngineCore pid=71) ValueError: Free memory on device cuda:0 (67.24/79.25 GiB) on startup is less"
        " than desired GPU memory utilization (0.9, 71.33 GiB). Decrease GPU memory utilization or reduce",
        "SS511",
        "only 67.24 of the GPU's 79.25 GiB are free and it wants 71.33: something else holds the rest, or"
        " gpu_memory_utilization (0.9) is too high",
    ),
    (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "SS511",
        "its share of the memory leaves none for the KV cache: raise gpu_memory_utilization, or use a smaller"
        " model or more GPUs",
    ),
    (
        "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared"
        " memory (shm).",
        "SS511",
        "shared memory is full: give the container a larger shm_size",
    ),
    (
        'could not select device driver "" with capabilities: [[gpu]]',
        "SS512",
        NO_GPU,
    ),
    ("RuntimeError: Found no NVIDIA driver on your system.", "SS512", NO_GPU),
    ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory", "SS512", NO_GPU),
    ("RuntimeError: Failed to infer device type, please set the environment", "SS512", NO_GPU),
    (
        "CUDA driver version is insufficient for CUDA runtime version",
        "SS512",
        "the GPU's driver is too old for this engine",
    ),
    (
        NO_ROOM + "Based on the available memory, the estimated maximum model length is 37184. Try",
        "SS513",
        "one request of 131072 tokens needs 16.0 GiB of KV cache, and there is room for 37184 tokens: set"
        " max_model_len",
    ),
    (
        NO_ROOM + "Try increasing `gpu_memory_utilization`",
        "SS513",
        "one request of 131072 tokens needs 16.0 GiB of KV cache, more than there is: set max_model_len",
    ),
    (
        "User-specified max_model_len (65536) is greater than the derived max_model_len"
        " (max_position_embeddings=32768 or model_max_length=None in model's config.json)",
        "SS513",
        "max_model_len is 65536, and the model was made for 32768 tokens",
    ),
    (
        "OSError: You are trying to access a gated repo.",
        "SS513",
        "the model is gated: accept its terms on the hub and give a token of that user in HF_TOKEN",
    ),
    (
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-68)",
        "SS513",
        "the hub has no such model, or HF_TOKEN does not give access to it",
    ),
    (
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
        "SS513",
        "the model is not in the cache, and the hub cannot be reached",
    ),
    (
        "huggingface_hub.errors.RevisionNotFoundError: 404 Client Error.",
        "SS513",
        "the hub does not have this revision of the model",
    ),
    (
        "ValueError: Model architectures ['FooForCausalLM'] are not supported for now.",
        "SS513",
        "this version of the engine does not know the model's architecture",
    ),
    (
        "Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
        "SS513",
        "the model brings code of its own: set trust_remote_code if you trust its authors",
    ),
    (
        "mlflow.exceptions.MlflowException: RESOURCE_DOES_NOT_EXIST: Registered Model with name=m not found",
        "SS513",
        "there is no such MLflow model",
    ),
    ("srv load_model: failed to load model, 'm.gguf'", "SS513", "the model could not be loaded"),
    ("OSError: [Errno 28] No space left on device: '/cache/x'", "SS515", "the disk is full"),
    ("ModuleNotFoundError: No module named 'vllm'", "SS506", "the Python module vllm is missing"),
    (
        "error: unrecognized arguments: -x",
        "SS506",
        "the engine does not know these arguments: -x",
    ),
    ("Error: No such option: --x", "SS506", "the engine does not know these arguments: --x"),
    (
        "OSError: [Errno 30] Read-only file system: '/x'",
        "SS506",
        "it writes where its container is read-only",
    ),
    ("bye", "SS506", ""),
]


@pytest.mark.parametrize(("line", "code", "text"), TOLD, ids=[line[:40] for line, _, _ in TOLD])
def test_the_log_tells_the_likely_cause(line, code, text):
    assert likely_cause(1, None, ["starting", line, "stopping"]) == Cause(code, text)


@pytest.mark.parametrize(
    "line",
    [
        "Free memory on device (78.6/79.2 GiB) on startup. "
        "Desired GPU memory utilization is (0.92, 72.9 GiB)",
        "config: model='m', trust_remote_code=True, dtype=torch.bfloat16",
        "INFO 11-22 10:00:00 Available KV cache memory: 11.12 GiB",
    ],
)
def test_what_engines_say_when_all_is_well_is_no_cause(line):
    assert likely_cause(1, None, [line]) == Cause("SS506", "")


@pytest.mark.parametrize(
    ("code", "number", "headline", "text"),
    [
        (0, None, "exit code 0", ""),
        (None, 9, "signal 9 (SIGKILL)", KILLED),
        (137, None, "exit code 137 (a child died of SIGKILL)", KILLED),
        (None, 11, "signal 11 (SIGSEGV)", "it crashed"),
        (None, 99, "signal 99 (signal 99)", ""),
        (255, None, "exit code 255 (a child died of signal 127)", ""),
    ],
)
def test_the_end_and_its_likely_cause(code, number, headline, text):
    assert how_it_ended(code, number) == headline
    assert likely_cause(code, number, ["hello"]) == Cause("SS506", text)
    assert ended(code, number, ["hello"]).text == (f"{headline}: {text}" if text else headline)


def test_the_newest_line_that_tells_something_wins():
    log = ["out of memory", "Address already in use", "bye"]
    assert likely_cause(1, None, log) == Cause("SS514", "the port is taken")


def test_a_kill_for_want_of_memory_is_told_whatever_the_log_says():
    found = ended(137, None, ["Address already in use"], oom=True)
    assert found.code == "SS511"
    assert found.text == "exit code 137 (a child died of SIGKILL): out of memory: it reached its limit"


def test_the_root_of_a_long_report_is_found_and_an_old_warning_is_not():
    warning = "WARNING Failed to import from vllm._C: ImportError('libcuda.so.1: cannot open shared object')"
    root = "(EngineCore pid=7) ERROR 11-22 torch.OutOfMemoryError: CUDA out of memory."
    report = [f"  File api_server.py, line {number}" for number in range(60)]
    last = "RuntimeError: Engine core initialization failed. See root cause above."
    assert likely_cause(1, None, [warning, root, *report, last]).code == "SS511"
    assert likely_cause(1, None, [warning, *report, last]) == Cause("SS506", "")


def test_log_lines_stand_below_the_headline():
    assert with_log("exit code 1", ["a", "", "b ", "c"], 2) == "exit code 1\n| b\n| c"
    assert with_log("exit code 1", [], 2) == "exit code 1"
