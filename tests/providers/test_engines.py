"""Engines are pure: launch spec in, command out; what a command needs is checked before it is tried."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from servestate.planner.launch import LaunchSpec
from servestate.providers import needs
from servestate.providers.engines import engine_for
from servestate.providers.engines.engine import NeedsFile, NeedsModule
from servestate.providers.engines.llamacpp_server import configure, parser
from servestate.providers.protocol import PermanentError

CHAT = LaunchSpec("process", "llamacpp", "chat", source="file://m.gguf", args=("--ctx-size", "2048"))
BASE = Path("/bundle")


def test_an_unknown_engine_names_the_known_ones():
    with pytest.raises(PermanentError, match='SS503 engine "vlm" is not known') as caught:
        engine_for("vlm")
    assert "command, llamacpp" in caught.value.fix


def test_command_puts_the_port_where_the_argv_says():
    spec = LaunchSpec(
        "process", "command", "m", args=("serve", "--port={port}", "{x}", "{port}"), health_path="/up"
    )
    command = engine_for("command").command(spec, 21000, BASE)
    assert command.argv == ("serve", "--port=21000", "{x}", "21000")
    assert (command.health_path, command.needs) == ("/up", ())


@pytest.mark.parametrize("args", [(), ("serve", "--port", "8000")])
def test_command_without_a_port_is_refused(args):
    with pytest.raises(PermanentError, match="never names its port"):
        engine_for("command").command(LaunchSpec("process", "command", "m", args=args), 21000, BASE)


def test_llamacpp_serves_the_file_on_loopback_under_the_models_name():
    command = engine_for("llamacpp").command(CHAT, 21000, BASE)
    assert command.argv[:4] == (sys.executable, "-P", "-m", "servestate.providers.engines.llamacpp_server")
    flags = parser().parse_args(command.argv[4:])
    assert (flags.model, flags.alias, flags.host, flags.port) == (
        "/bundle/m.gguf",
        "chat",
        "127.0.0.1",
        21000,
    )
    assert flags.ctx_size == 2048
    assert not hasattr(flags, "embeddings")


def test_llamacpp_serves_embeddings_where_the_task_asks_for_them():
    command = engine_for("llamacpp").command(replace(CHAT, task="llm/v1/embeddings"), 21000, BASE)
    assert "--embeddings" in command.argv


@pytest.mark.parametrize(
    ("source", "path"), [("file://a/b.gguf", "/bundle/a/b.gguf"), ("file:///w/b.gguf", "/w/b.gguf")]
)
def test_relative_sources_start_at_the_bundles_folder(source, path):
    command = engine_for("llamacpp").command(replace(CHAT, source=source), 1, BASE)
    assert path in command.argv


@pytest.mark.parametrize("source", ["", "hf://org/model", "models:/m", "file://", "m.gguf"])
def test_a_source_that_is_no_local_file_is_refused(source):
    with pytest.raises(PermanentError, match="SS502"):
        engine_for("llamacpp").command(replace(CHAT, source=source), 1, BASE)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file or directory"),
        (b"", "it is empty"),
        (b"<html>", "it begins with b'<htm', not b'GGUF'"),
    ],
)
def test_a_file_that_is_missing_or_of_another_kind_is_named(tmp_path, content, text):
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PermanentError, match="SS502") as caught:
        needs.check(NeedsFile(path, b"GGUF", "GGUF", "point at one"))
    assert str(path) in caught.value.what
    assert text in caught.value.what
    assert caught.value.fix == "point at one"


def test_a_package_that_is_not_installed_is_named():
    needs.check(NeedsModule("json", ""))
    with pytest.raises(PermanentError, match="SS505 the Python package no_such_package is not installed"):
        needs.check(NeedsModule("no_such_package", "install it"))


def test_the_launcher_writes_flags_into_the_parameters():
    params = SimpleNamespace(
        model=SimpleNamespace(),
        cpuparams=SimpleNamespace(),
        cpuparams_batch=SimpleNamespace(),
        sampling=SimpleNamespace(),
    )
    address = "-m m.gguf -a chat --host 127.0.0.1 --port 21000"
    argv = f"{address} -c 512 -np 2 -t 3 --embeddings --pooling mean --no-warmup"
    configure(params, parser().parse_args(argv.split()), {"LLAMA_POOLING_TYPE_MEAN": "mean"})
    assert (params.model.path, params.model_alias) == ("m.gguf", {"chat"})
    assert (params.hostnames, params.port) == (["127.0.0.1"], 21000)
    assert (params.n_ctx, params.n_parallel, params.cpuparams.n_threads) == (512, 2, 3)
    assert (params.embedding, params.pooling_type, params.warmup) == (True, "mean", False)
    assert not hasattr(params, "n_batch")


def test_the_launcher_refuses_a_flag_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["-m", "m", "-a", "a", "--host", "h", "--port", "1", "--no-such-flag"])
    assert "unrecognized arguments: --no-such-flag" in capsys.readouterr().err
