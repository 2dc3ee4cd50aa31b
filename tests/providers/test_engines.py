"""Engines are pure: launch spec in, command out; what a command needs is checked before it is tried."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from servestate.planner.engine_keys import KEYED
from servestate.planner.launch import Container, LaunchSpec, Mount
from servestate.planner.spec.engine_options import OPTIONS
from servestate.providers import needs
from servestate.providers.engines import ENGINES, engine_for
from servestate.providers.engines.engine import KEY_FILE, NeedsFile, NeedsModule
from servestate.providers.engines.llamacpp_server import configure, parser
from servestate.providers.protocol import PermanentError

BASE = Path("/bundle")
KEY = Path("/run/key.yaml")
IMAGE = Container("image:1")
CHAT = LaunchSpec("process", "llamacpp", "chat", source="file://m.gguf", options=(("ctx_size", 2048),))
VLLM = LaunchSpec("process", "vllm", "chat", source="hf://org/model", task="llm/v1/chat")
HUGGING = LaunchSpec("process", "transformers", "chat", source="hf://org/model", task="llm/v1/chat")
FLOW = LaunchSpec("process", "mlflow", "iris", source="file://models/iris", health_path="/ping")


def argv(spec, key_file=None):
    return engine_for(spec.engine).command(spec, 21000, BASE, key_file).argv


def inside(spec, key_file=None):
    return engine_for(spec.engine).container(replace(spec, container=IMAGE), BASE, key_file)


def refused(spec):
    with pytest.raises(PermanentError) as caught:
        argv(spec)
    with pytest.raises(PermanentError):
        inside(spec)
    assert caught.value.fix
    return str(caught.value)


def test_an_unknown_engine_names_the_known_ones():
    with pytest.raises(PermanentError, match='SS503 engine "vlm" is not known') as caught:
        engine_for("vlm")
    assert "command, llamacpp, mlflow, transformers, vllm" in caught.value.fix


def test_every_engine_with_options_or_a_key_is_there():
    assert set(OPTIONS) | {"command"} == set(ENGINES)
    assert {name for name, engine in ENGINES.items() if engine.key_text("k")} == KEYED


def test_command_puts_the_port_where_the_argv_says():
    spec = LaunchSpec("process", "command", "m", args=("serve", "--port={port}", "{x}", "{port}"))
    assert argv(spec) == ("serve", "--port=21000", "{x}", "21000")
    assert inside(spec).args == ("serve", "--port=8000", "{x}", "8000")
    assert inside(replace(spec, args=())).args == ()


@pytest.mark.parametrize("args", [(), ("serve", "--port", "8000")])
def test_command_without_a_port_is_refused(args):
    with pytest.raises(PermanentError, match="never names its port"):
        argv(LaunchSpec("process", "command", "m", args=args))


def test_llamacpp_serves_the_file_on_loopback_under_the_models_name():
    command = argv(CHAT, KEY)
    assert command[:2] == (sys.executable, "-P")
    assert Path(command[2]).name == "llamacpp_server.py"
    assert Path(command[2]).exists()
    assert command[3:] == (
        *("--model", "/bundle/m.gguf", "--alias", "chat", "--host", "127.0.0.1", "--port", "21000"),
        *("--api-key-file", "/run/key.yaml", "--ctx-size", "2048"),
    )
    flags = parser().parse_args(command[3:])
    assert (flags.ctx_size, flags.api_key_file) == (2048, KEY)
    assert not hasattr(flags, "embeddings")


def test_llamacpp_in_a_container_sees_one_file():
    command = inside(
        replace(CHAT, source="file:///w/m.gguf", args=("--metrics",)), "/run/servestate/key.yaml"
    )
    assert command.args == (
        *("--model", "/models/m.gguf", "--alias", "chat", "--host", "0.0.0.0", "--port", "8000"),
        *("--api-key-file", "/run/servestate/key.yaml", "--ctx-size", "2048", "--metrics"),
    )
    assert command.mounts == (Mount("/w/m.gguf", "/models/m.gguf"),)


def test_llamacpp_serves_embeddings_where_the_task_asks_for_them():
    assert "--embeddings" in argv(replace(CHAT, task="llm/v1/embeddings"))


def test_every_typed_option_of_llamacpp_is_a_flag_of_its_server():
    options = tuple((name, 1) for name in sorted(OPTIONS["llamacpp"].model_fields))
    flags = parser().parse_args(argv(replace(CHAT, options=options))[3:])
    assert {name: getattr(flags, name) for name, _ in options} == dict(options)


@pytest.mark.parametrize(
    ("source", "path"), [("file://a/b.gguf", "/bundle/a/b.gguf"), ("file:///w/b.gguf", "/w/b.gguf")]
)
def test_relative_sources_start_at_the_bundles_folder(source, path):
    assert path in argv(replace(CHAT, source=source))


def test_vllm_as_a_process():
    spec = replace(
        VLLM,
        gpus=2,
        options=(("enforce_eager", True), ("max_model_len", 4096), ("trust_remote_code", False)),
        args=("--chat-template", "t.jinja"),
    )
    command = engine_for("vllm").command(spec, 21000, BASE, KEY)
    assert command.argv == (
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", "org/model"),
        *("--served-model-name", "chat", "--host", "127.0.0.1", "--port", "21000"),
        *("--config", "/run/key.yaml", "--shutdown-timeout", "7"),
        *("--enforce-eager", "--max-model-len", "4096", "--tensor-parallel-size", "2"),
        *("--no-trust-remote-code", "--chat-template", "t.jinja"),
    )
    assert command.env == (("HF_HUB_DISABLE_TELEMETRY", "1"), ("VLLM_NO_USAGE_STATS", "1"))
    assert [type(need) for need in command.needs] == [NeedsModule]


def test_vllm_in_a_container():
    spec = replace(VLLM, source="hf://org/model@v1.0", task="llm/v1/embeddings")
    command = inside(spec, "/run/servestate/key.yaml")
    assert command.args == (
        *("org/model", "--served-model-name", "chat", "--host", "0.0.0.0", "--port", "8000"),
        *("--config", "/run/servestate/key.yaml", "--shutdown-timeout", "7", "--runner", "pooling"),
        *("--revision", "v1.0"),
    )
    assert dict(command.env)["HF_HOME"] == "/cache/huggingface"
    assert dict(command.env)["VLLM_CACHE_ROOT"] == "/cache/vllm"
    assert (command.port, command.mounts, command.user) == (8000, (), "2000:0")
    assert {f"/cache/{cache}" for cache in command.caches} >= {
        value for value in dict(command.env).values() if value.startswith("/cache")
    }


def test_vllm_serves_a_folder():
    spec = replace(VLLM, source="file://weights/./tiny/")
    command = engine_for("vllm").command(spec, 21000, BASE, None)
    assert command.argv[4:6] == ("--model", "/bundle/weights/tiny")
    assert "--config" not in command.argv
    (_, weights) = command.needs
    assert isinstance(weights, NeedsFile)
    assert weights.path == Path("/bundle/weights/tiny/config.json")
    assert inside(spec).args[0] == "/models/tiny"
    assert inside(spec).mounts == (Mount("/bundle/weights/tiny", "/models/tiny", read_only=True),)


@pytest.mark.parametrize(
    ("gpus", "fraction", "options", "flags"),
    [
        (0, 1.0, {}, ()),
        (1, 1.0, {}, ()),
        (1, 0.5, {}, ("--gpu-memory-utilization", "0.46")),
        (1, 0.5, {"gpu_memory_utilization": 0.3}, ("--gpu-memory-utilization", "0.3")),
        (4, 1.0, {}, ("--tensor-parallel-size", "4")),
        (
            4,
            1.0,
            {"pipeline_parallel_size": 2},
            ("--pipeline-parallel-size", "2", "--tensor-parallel-size", "2"),
        ),
        (2, 1.0, {"data_parallel_size": 2}, ("--data-parallel-size", "2")),
        (4, 1.0, {"tensor_parallel_size": 4}, ("--tensor-parallel-size", "4")),
    ],
)
def test_vllm_uses_the_gpus_it_gets(gpus, fraction, options, flags):
    spec = replace(VLLM, gpus=gpus, gpu_fraction=fraction, options=tuple(options.items()))
    assert argv(spec)[argv(spec).index("7") + 1 :] == flags


def test_vllm_opens_the_paths_that_put_it_to_sleep_only_where_it_may_sleep():
    env = dict(engine_for("vllm").command(VLLM, 1, BASE, None).env)
    assert "VLLM_SERVER_DEV_MODE" not in env
    sleeping = replace(VLLM, options=(("enable_sleep_mode", True),))
    assert dict(inside(sleeping).env)["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize("key", ["abc", "123456", "0x1f", "1e5", "true"])
def test_vllms_key_is_text_in_its_configuration_file(key):
    assert yaml.safe_load(engine_for("vllm").key_text(key)) == {"api-key": key}
    assert Path(KEY_FILE).suffix == ".yaml"


def test_transformers_answers_to_what_it_loads():
    command = engine_for("transformers").command(
        replace(HUGGING, source="hf://org/model@main"), 21000, BASE, None
    )
    assert command.argv == (
        *(sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", "org/model@main"),
        *("--host", "127.0.0.1", "--port", "21000"),
    )
    assert dict(command.env)["HF_HUB_DISABLE_UPDATE_CHECK"] == "1"
    first = engine_for("transformers").first_request(HUGGING)
    assert first is not None
    assert (first.path, first.body["model"]) == ("/v1/chat/completions", "org/model")


def test_transformers_in_a_container():
    spec = replace(
        HUGGING,
        source="file://weights/tiny",
        gpus=1,
        options=(("continuous_batching", True), ("dtype", "float16")),
    )
    command = inside(spec)
    assert command.args == (
        *("transformers", "serve", "/models/tiny", "--host", "0.0.0.0", "--port", "8000"),
        *("--continuous-batching", "--device", "cuda", "--dtype", "float16"),
    )
    assert command.mounts == (Mount("/bundle/weights/tiny", "/models/tiny"),)
    first = engine_for("transformers").first_request(replace(spec, container=IMAGE))
    assert first is not None
    assert first.body["model"] == "/models/tiny"


@pytest.mark.parametrize(
    ("gpus", "given", "device"), [(0, None, ""), (1, "auto", "cuda"), (1, "cpu", "cpu"), (2, None, "auto")]
)
def test_transformers_is_told_its_device(gpus, given, device):
    options = (("device", given),) if given else ()
    found = argv(replace(HUGGING, gpus=gpus, options=options))
    assert found[10:] == (("--device", device) if device else ())


def test_mlflow_as_a_process_finds_the_uvicorn_of_its_own_environment():
    spec = replace(FLOW, python=".venv/bin/python", options=(("timeout_s", 90), ("workers", 2)))
    command = engine_for("mlflow").command(spec, 21000, BASE, None)
    assert command.argv == (
        *("/bundle/.venv/bin/python", "-P", "-m", "mlflow", "models", "serve"),
        *("--model-uri", "/bundle/models/iris", "--host", "127.0.0.1", "--port", "21000"),
        *("--env-manager", "local", "--timeout", "90", "--workers", "2"),
    )
    assert dict(command.env)["PATH"].startswith("/bundle/.venv/bin:")
    (model,) = command.needs
    assert isinstance(model, NeedsFile)
    assert model.path == Path("/bundle/models/iris/MLmodel")


def test_mlflow_in_a_container_loads_from_the_registry():
    command = inside(replace(FLOW, source="models:/iris/3"))
    assert command.args == (
        *(
            "mlflow",
            "models",
            "serve",
            "--model-uri",
            "models:/iris/3",
            "--host",
            "0.0.0.0",
            "--port",
            "8000",
        ),
        *("--env-manager", "local"),
    )
    assert command.mounts == ()
    assert engine_for("mlflow").first_request(FLOW) is None


@pytest.mark.parametrize("source", ["", "hf://org/model", "models:/m", "file://", "m.gguf"])
def test_llamacpp_refuses_what_is_no_local_file(source):
    assert "SS502" in refused(replace(CHAT, source=source))


@pytest.mark.parametrize(
    "source",
    [
        "",
        "org/model",
        "models:/m/1",
        "file://",
        "hf://",
        "hf://-x/y",
        "hf://a/b/c",
        "hf://a b",
        "s3://x/y",
        "hf://o/m@",
    ],
)
@pytest.mark.parametrize("spec", [VLLM, HUGGING], ids=["vllm", "transformers"])
def test_a_source_that_is_neither_of_the_hub_nor_a_folder_is_refused(spec, source):
    assert f'SS502 engine {spec.engine} cannot load "{source}"' in refused(replace(spec, source=source))


@pytest.mark.parametrize("source", ["", "hf://org/model", "models:/", "models:/a/b/c", "file://", "iris"])
def test_mlflow_refuses_what_is_no_model_of_its_own(source):
    assert "SS502" in refused(replace(FLOW, source=source))


def test_what_an_engine_has_no_path_for_is_refused():
    assert "SS503" in refused(replace(HUGGING, task="llm/v1/embeddings"))
    assert "SS503" in refused(replace(FLOW, task="llm/v1/chat"))


def test_two_revisions_are_refused():
    both = replace(VLLM, source="hf://org/model@v1", options=(("revision", "v2"),))
    assert "two revisions: v1 and v2" in refused(both)
    assert argv(replace(both, options=(("revision", "v1"),)))[-2:] == ("--revision", "v1")


def test_transformers_refuses_a_folder_whose_name_it_would_misread():
    assert "rename" in engine_fix(replace(HUGGING, source="file://weights/a@b"))


def engine_fix(spec):
    with pytest.raises(PermanentError) as caught:
        argv(spec)
    return caught.value.fix


@pytest.mark.parametrize("engine", ["vllm", "llamacpp", "transformers", "mlflow"])
@pytest.mark.parametrize(
    ("python", "start"), [("venv/bin/python", "/bundle/venv/bin/python"), ("/v/bin/python", "/v/bin/python")]
)
def test_another_interpreter_is_not_searched_for_modules_here(engine, python, start):
    spec = replace(
        {"vllm": VLLM, "llamacpp": CHAT, "transformers": HUGGING, "mlflow": FLOW}[engine], python=python
    )
    command = engine_for(engine).command(spec, 1, BASE, None)
    assert command.argv[0] == start
    assert not [need for need in command.needs if isinstance(need, NeedsModule)]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([VLLM, CHAT, HUGGING, FLOW]),
    st.text("0123456789abcdef", min_size=16, max_size=64),
    st.text("ABCDEFGHJKLMN", min_size=12),
)
def test_no_argv_and_no_engine_variable_ever_holds_a_key_or_a_secret(spec, key, secret):
    spec = replace(spec, env=(("HF_TOKEN", secret), ("OTHER", "{{secrets/scope/key}}")))
    engine = engine_for(spec.engine)
    assert not engine.key_text(key) or key in engine.key_text(key)
    command, contained = engine.command(spec, 21000, BASE, KEY), inside(spec, "/run/servestate/key.yaml")
    said = [*command.argv, *contained.args, *map(str, command.env), *map(str, contained.env)]
    assert not [text for text in said if key in text or secret in text or "{{" in text]


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


def test_a_folder_without_a_model_is_named(tmp_path):
    spec = replace(VLLM, source=f"file://{tmp_path}")
    (_, weights) = engine_for("vllm").command(spec, 1, BASE, None).needs
    with pytest.raises(PermanentError, match=r"SS502 model file .*config\.json: No such file"):
        needs.check(weights)
    (tmp_path / "config.json").write_text("{}")
    needs.check(weights)


def test_a_package_that_is_not_installed_is_named():
    needs.check(NeedsModule("json", ""))
    with pytest.raises(PermanentError, match="SS505 the Python package no_such_package is not installed"):
        needs.check(NeedsModule("no_such_package", "install it"))


def test_the_launcher_writes_flags_into_the_parameters(tmp_path):
    params = SimpleNamespace(
        model=SimpleNamespace(),
        cpuparams=SimpleNamespace(),
        cpuparams_batch=SimpleNamespace(),
        sampling=SimpleNamespace(),
    )
    key = tmp_path / "key.yaml"
    key.write_text(engine_for("llamacpp").key_text("k3y"))
    address = f"-m m.gguf -a chat --host 127.0.0.1 --port 21000 --api-key-file {key}"
    argv = f"{address} -c 512 -np 2 -t 3 --embeddings --pooling mean --no-warmup"
    configure(params, parser().parse_args(argv.split()), {"LLAMA_POOLING_TYPE_MEAN": "mean"})
    assert (params.model.path, params.model_alias) == ("m.gguf", {"chat"})
    assert (params.hostnames, params.port) == (["127.0.0.1"], 21000)
    assert params.api_keys == ["k3y"]
    assert (params.n_ctx, params.n_parallel, params.cpuparams.n_threads) == (512, 2, 3)
    assert (params.embedding, params.pooling_type, params.warmup) == (True, "mean", False)
    assert not hasattr(params, "n_batch")


def test_the_launcher_refuses_a_flag_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["-m", "m", "-a", "a", "--host", "h", "--port", "1", "--no-such-flag"])
    assert "unrecognized arguments: --no-such-flag" in capsys.readouterr().err
