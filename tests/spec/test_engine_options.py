"""Typed options, the flags that are the planner's, and a site that uses everything that there is."""

import argparse
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.spec.bundle import Desired, Document, load
from servestate.planner.spec.engine_options import OPTIONS, OWNED_FLAGS, flag_of, owned_by, tensor_parallel
from servestate.providers.engines.llamacpp_server import parser

EVERYTHING = """
servestate:
  providers:
    docker:
      image_policy: digest
      pull: never
      hosts:
        alpha:
          url: unix:///run/user/1000/docker.sock
          gpus: [{id: "0", memory: 80GiB, name: H100}, {id: GPU-5e9d, memory: 80GiB}]
          allowed_paths: [/srv/models]
        beta: {url: "ssh://serve@beta.example:2222", address: 10.0.0.2, allowed_paths: [/srv]}
        gamma:
          url: tcp://gamma:2376
          address: gamma.internal
          tls: {ca: ca.pem, cert: cert.pem, key: key.pem}
          allowed_paths: [/srv/models/]
        delta: {url: "tcp://127.0.0.1:2375"}
  workload_types:
    GPU_SMALL: {provider: docker, gpus: 1, gpu_fraction: 0.5, hosts: [alpha, beta]}
    GPU_LARGE: {provider: docker, gpus: 4, hosts: [gamma]}
  models:
    chat:
      task: llm/v1/chat
      versions:
        "1":
          engine: vllm
          source: file:///srv/models/chat
          image: registry:5000/vllm/vllm-openai:v0.32.0@sha256:DIGEST
          vllm: {max_model_len: 4096, gpu_memory_utilization: 0.4, trust_remote_code: true}
          args: [--seed, "1", --chat-template, /data/t.jinja]
          env: {HF_TOKEN: "{{secrets/hub/token}}"}
          container:
            user: "1000:0"
            memory: 16GiB
            cpus: 4
            pids: 512
            shm_size: 1GiB
            network: models
            read_only: false
            mounts: [{source: /srv/models/templates, target: /data, read_only: true}]
        "2":
          engine: vllm
          source: hf://org/model@main
          image: vllm/vllm-openai@sha256:DIGEST
          vllm: {pipeline_parallel_size: 2}
    own:
      versions:
        "1": {engine: command, image: "own@sha256:DIGEST", container: {port: 9000}}
  overrides:
    e: {hosts: [beta], strategy: recreate}
    e/b: {hosts: [gamma], args: [--enable-prefix-caching]}
resources:
  model_serving_endpoints:
    e:
      name: e
      config:
        served_entities:
          - {name: a, entity_name: chat, entity_version: "1", workload_size: Small, workload_type: GPU_SMALL}
          - {name: b, entity_name: chat, entity_version: "2", workload_size: Small, workload_type: GPU_LARGE}
        traffic_config:
          routes:
            - {served_model_name: a, traffic_percentage: 50}
            - {served_model_name: b, traffic_percentage: 50}
""".replace("DIGEST", "5" * 64)


def bundle(text: str) -> Desired:
    return load([Document("b.yaml", text)])


def refusals(engine: str, *args: str) -> list[str]:
    """What is said of the args of a version of that engine: code and fix of each finding."""
    version = f"{{engine: {engine}, source: 'x', args: {list(args)}}}"
    text = f"servestate: {{models: {{m: {{versions: {{'1': {version}}}}}}}}}"
    try:
        bundle(text)
    except InvalidInput as error:
        return [f"{found.code} {found.fix}" for found in error.diagnostics]
    return []


OWNED = [(engine, flag, instead) for engine, flags in OWNED_FLAGS.items() for flag, instead in flags.items()]
TYPED = [(engine, option) for engine, kind in OPTIONS.items() for option in kind.model_fields]


def test_a_site_that_uses_everything_is_accepted_without_a_word() -> None:
    desired = bundle(EVERYTHING)
    assert desired.warnings == ()
    docker = desired.site.providers.docker
    assert docker is not None
    assert sorted(docker.by_name) == ["alpha", "beta", "delta", "gamma"]


@pytest.mark.parametrize(("engine", "flag", "instead"), OWNED, ids=[f"{e} {f}" for e, f, _ in OWNED])
@pytest.mark.parametrize("form", ["{}", "{}=1"])
def test_every_owned_flag_is_refused_with_what_to_use_instead(
    engine: str, flag: str, instead: str, form: str
) -> None:
    (found,) = refusals(engine, form.format(flag))
    if not instead:
        assert found == "SS191 remove it"
    elif instead in OPTIONS[engine].model_fields:
        assert found == f"SS191 write {engine}: {{{instead}: …}} in the model's version"
    else:
        assert found == f"SS191 use the key {instead}"


@pytest.mark.parametrize(("engine", "option"), TYPED)
def test_the_flag_of_every_typed_option_is_refused(engine: str, option: str) -> None:
    (found,) = refusals(engine, flag_of(option))
    assert found == f"SS191 write {engine}: {{{option}: …}} in the model's version"


@pytest.mark.parametrize(
    ("engine", "arg"),
    [
        *[("vllm", "--api-k"), ("vllm", "--trust_rem"), ("vllm", "--served_model_name=x"), ("vllm", "-O3")],
        *[("vllm", "-qawq"), ("mlflow", "-w4"), ("llamacpp", "-c512"), ("llamacpp", "-t4")],
    ],
)
def test_other_spellings_of_an_owned_flag_are_refused(engine: str, arg: str) -> None:
    assert owned_by(engine, arg) is not None


@pytest.mark.parametrize(
    ("engine", "arg"),
    [
        *[
            ("vllm", "--seed"),
            ("vllm", "--enable-prefix-caching"),
            ("vllm", "--max-logprobs=5"),
            ("vllm", "-asc"),
        ],
        *[("vllm", "--data-parallel-size-local"), ("vllm", "8"), ("vllm", "-"), ("vllm", "--"), ("vllm", "")],
        *[("llamacpp", "-tb"), ("llamacpp", "--metrics"), ("mlflow", "x"), ("transformers", "--compile")],
        *[("command", "--port"), ("command", "-m")],
    ],
)
def test_what_is_not_owned_is_the_users_own(engine: str, arg: str) -> None:
    assert owned_by(engine, arg) is None


def test_every_beginning_that_argparse_would_take_for_an_owned_flag_is_owned() -> None:
    flags = [flag for flag in OWNED_FLAGS["vllm"] if flag.startswith("--")]
    flags += [flag_of(option) for option in OPTIONS["vllm"].model_fields]
    reader = argparse.ArgumentParser(exit_on_error=False)
    for flag in flags:
        reader.add_argument(flag)
    for flag in flags:
        for end in range(3, len(flag) + 1):
            assert owned_by("vllm", flag[:end]) is not None


def test_each_flag_of_the_own_server_of_llamacpp_is_free_or_owned_whatever_its_spelling() -> None:
    for action in parser()._actions:
        owned = {owned_by("llamacpp", option) is not None for option in action.option_strings}
        assert len(owned) == 1, action.option_strings


@given(st.sampled_from(sorted(OPTIONS)), st.text(max_size=12))
def test_nothing_but_a_flag_is_ever_owned(engine: str, text: str) -> None:
    if not text.startswith("-"):
        assert owned_by(engine, text) is None


@pytest.mark.parametrize(
    ("gpus", "options", "tensor"),
    [
        (0, {}, 1),
        (1, {}, 1),
        (8, {}, 8),
        (8, {"pipeline_parallel_size": 2}, 4),
        (8, {"pipeline_parallel_size": 2, "data_parallel_size": 2}, 2),
        (2, {"data_parallel_size": 4}, 1),
        (8, {"tensor_parallel_size": 2}, 2),
    ],
)
def test_vllm_splits_layers_over_the_gpus_that_are_left(
    gpus: int, options: dict[str, str | int | float | bool], tensor: int
) -> None:
    assert tensor_parallel(gpus, options) == tensor


def test_an_option_is_named_as_its_flag() -> None:
    for _, option in TYPED:
        assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", flag_of(option))
