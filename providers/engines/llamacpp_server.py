"""Runs llama.cpp's HTTP server in the foreground: the program behind the engine `llamacpp`.

The package xllamacpp offers the server as an object whose parameters are attributes; this maps the flags of
llama.cpp's own `llama-server` that people know to those attributes. An unknown flag ends the program at once.
SIGTERM ends it the default way, also in the middle of loading.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

POOLING = ("none", "mean", "cls", "last", "rank")

_PARAMETERS = {
    "ctx_size": "n_ctx",
    "parallel": "n_parallel",
    "batch_size": "n_batch",
    "ubatch_size": "n_ubatch",
    "gpu_layers": "n_gpu_layers",
    "predict": "n_predict",
    "threads_http": "n_threads_http",
    "embeddings": "embedding",
    "metrics": "endpoint_metrics",
    "chat_template": "chat_template",
    "verbosity": "verbosity",
}


def parser() -> argparse.ArgumentParser:
    """The flags, named as llama-server names them. Those left out keep llama.cpp's defaults."""
    flags = argparse.ArgumentParser(prog="llamacpp", argument_default=argparse.SUPPRESS, allow_abbrev=False)
    flags.add_argument("-m", "--model", required=True)
    flags.add_argument("-a", "--alias", required=True)
    flags.add_argument("--host", required=True)
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--api-key-file", type=Path)
    flags.add_argument("-c", "--ctx-size", type=int)
    flags.add_argument("-np", "--parallel", type=int)
    flags.add_argument("-t", "--threads", type=int)
    flags.add_argument("-tb", "--threads-batch", type=int)
    flags.add_argument("--threads-http", type=int)
    flags.add_argument("-b", "--batch-size", type=int)
    flags.add_argument("-ub", "--ubatch-size", type=int)
    flags.add_argument("-ngl", "--gpu-layers", "--n-gpu-layers", type=int)
    flags.add_argument("-n", "--predict", "--n-predict", type=int)
    flags.add_argument("-s", "--seed", type=int)
    flags.add_argument("--temp", type=float)
    flags.add_argument("--chat-template")
    flags.add_argument("--embeddings", "--embedding", action="store_true")
    flags.add_argument("--pooling", choices=POOLING)
    flags.add_argument("--metrics", action="store_true")
    flags.add_argument("--no-warmup", action="store_true")
    flags.add_argument("-lv", "--verbosity", type=int)
    return flags


def configure(params: Any, flags: argparse.Namespace, pooling_types: Any) -> None:
    """Write the flags into llama.cpp's parameters."""
    given = vars(flags)
    params.model.path = flags.model
    params.model_alias = {flags.alias}
    params.hostnames = [flags.host]
    params.port = flags.port
    if "api_key_file" in given:
        params.api_keys = flags.api_key_file.read_text().split()
    params.offline = True
    params.ui = False
    params.endpoint_slots = False  # it shows the prompts of other callers
    # By default any web page in a browser on this machine may call the server and read the answer.
    params.cors_origins = f"http://{flags.host}:{flags.port}"
    params.cors_credentials = False
    params.warmup = "no_warmup" not in given
    for flag, attribute in _PARAMETERS.items():
        if flag in given:
            setattr(params, attribute, given[flag])
    for flag, owner, attribute in (
        ("threads", params.cpuparams, "n_threads"),
        ("threads_batch", params.cpuparams_batch, "n_threads"),
        ("seed", params.sampling, "seed"),
        ("temp", params.sampling, "temp"),
    ):
        if flag in given:
            setattr(owner, attribute, given[flag])
    if "pooling" in given:
        params.pooling_type = pooling_types[f"LLAMA_POOLING_TYPE_{flags.pooling.upper()}"]


def main(argv: list[str]) -> int:
    """Load the model, serve until a signal comes. Does not return while it serves."""
    flags = parser().parse_args(argv)
    import xllamacpp

    params = xllamacpp.CommonParams()
    configure(params, flags, xllamacpp.llama_pooling_type)
    server = xllamacpp.Server(params)
    print(f"serving {flags.alias} on {server.listening_address}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
