"""T95: what every container is created with, and that a spec reaches nothing else."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import Container, Mount, Placement
from servestate.providers.docker import create, entry, marks
from servestate.providers.docker.create import Ground, Image
from servestate.providers.docker.entry import Handover
from servestate.providers.engines.engine import ContainerCommand
from servestate.providers.labels import Worn
from servestate.providers.protocol import Marks, PermanentError

GIB = 2**30
IMAGE = Image("vllm/vllm-openai@sha256:aa", "sha256:bb", "root", ("vllm", "serve"), ("--help",))
GROUND = Ground(IMAGE, 100 * GIB, "127.0.0.1", "the-cache", ("/srv/docker.sock",))
COMMAND = ContainerCommand(("--port", "8000"), 8000, (("OWN", "1"),))
CONTAINER = Container("vllm/vllm-openai:v1", "sha256:aa")


def worn(placement=None):
    address = InstanceAddress("multi-model", "current", "3f9a1c27", 2)
    return Worn(Marks("a-lineage", address, 7, "an-op", placement or Placement()), "a-nonce", 8000)


def config(container=CONTAINER, command=COMMAND, env=None, handover=None, ground=GROUND, placement=None):
    return create.config(container, worn(placement), command, env or {}, handover or Handover(), ground)


def host_config(**given):
    return config(**given)["HostConfig"]


def test_the_defaults_are_as_little_as_possible():
    assert config() == {
        "Image": "vllm/vllm-openai@sha256:aa",
        "User": "65534:65534",
        "Env": ["NVIDIA_VISIBLE_DEVICES=void", "OWN=1"],
        "Labels": marks.to_labels(worn()),
        "ExposedPorts": {"8000/tcp": {}},
        "Cmd": ["--port", "8000"],
        "HostConfig": {
            "Memory": int(90 * GIB),
            "MemorySwap": int(90 * GIB),
            "NanoCpus": 0,
            "PidsLimit": 4096,
            "NetworkMode": "bridge",
            "PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
            "Mounts": [],
            "ReadonlyRootfs": True,
            "Tmpfs": {
                "/tmp": f"rw,nosuid,nodev,exec,size={2 * GIB},mode=1777",
                "/run": f"rw,nosuid,nodev,noexec,size={16 * 2**20},mode=1777,uid=65534,gid=65534",
            },
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Init": True,
            "RestartPolicy": {"Name": "no"},
            "DeviceRequests": [],
            "LogConfig": {"Type": "local", "Config": {"max-size": "10m", "max-file": "3"}},
        },
    }


EVERYTHING = Container(
    "vllm/vllm-openai:v1",
    "sha256:aa",
    user="7:8",
    memory=GIB,
    cpus=1.5,
    pids=99,
    shm=5,
    network="models",
    mounts=(Mount("/srv/data", "/data", read_only=False),),
    read_only=False,
    port=9000,
)


def test_a_spec_reaches_these_settings_and_no_other():
    plain, asked = config(), config(EVERYTHING)
    outer = {name for name in asked if asked[name] != plain[name]} - {"HostConfig"}
    theirs, mine = asked["HostConfig"], plain["HostConfig"]
    assert "uid=7,gid=8" in theirs.pop("Tmpfs")["/run"]
    inner = {name for name in theirs if theirs[name] != mine.get(name)}
    assert outer == {"User"}
    assert inner == {
        "Memory", "MemorySwap", "NanoCpus", "PidsLimit", "ShmSize", "NetworkMode", "Mounts", "ReadonlyRootfs",
    }  # fmt: skip
    assert all(getattr(EVERYTHING, f.name) != f.default for f in fields(Container)), "a new field: judge it"


def test_limits_are_passed_on_and_swap_gets_nothing():
    got = host_config(container=EVERYTHING)
    assert (got["Memory"], got["MemorySwap"]) == (GIB, GIB)
    assert (got["NanoCpus"], got["PidsLimit"], got["ShmSize"]) == (1_500_000_000, 99, 5)


def test_shared_memory_is_dockers_own_where_none_is_asked_for():
    assert "ShmSize" not in host_config()


@pytest.mark.parametrize(
    ("asked", "of_image", "user"),
    [
        ("1:2", "vllm", "1:2"),
        ("0", "vllm", "0"),
        ("", "vllm", "vllm"),
        ("", "2000:0", "2000:0"),
        ("", "", "65534:65534"),
        ("", "root", "65534:65534"),
        ("", "root:root", "65534:65534"),
        ("", "0", "65534:65534"),
        ("", "0:0", "65534:65534"),
    ],
)
def test_nobody_is_root_unless_it_is_asked_for(asked, of_image, user):
    ground = replace(GROUND, image=replace(IMAGE, user=of_image))
    assert config(replace(CONTAINER, user=asked), ground=ground)["User"] == user


@pytest.mark.parametrize(
    ("user", "owner"),
    [
        ("65534:65534", (65534, 65534)),
        ("2000:0", (2000, 0)),
        ("5", (5, 5)),
        ("vllm", None),
        ("5:staff", None),
    ],
)
def test_the_owner_of_the_caches_is_the_user_where_its_number_is_known(user, owner):
    assert create.owner(user) == owner


def test_mounts_refuse_a_missing_source_and_are_read_only_unless_asked():
    command = replace(COMMAND, mounts=(Mount("/w/model.gguf", "/models/model.gguf"),))
    container = replace(CONTAINER, mounts=(Mount("/srv/data", "/data", read_only=False),))
    weights, data = host_config(container=container, command=command)["Mounts"]
    assert (weights["Type"], weights["Source"], weights["ReadOnly"]) == ("bind", "/w/model.gguf", True)
    assert (data["Type"], data["Target"], data["ReadOnly"]) == ("bind", "/data", False)
    assert "Binds" not in host_config(container=container)


@pytest.mark.parametrize("source", ["/srv/docker.sock", "/srv", "/srv/", "/"])
def test_nobody_gets_the_docker_socket(source):
    with pytest.raises(PermanentError, match=r"SS532.*Docker socket"):
        config(replace(CONTAINER, mounts=(Mount(source, "/x"),)))


def test_a_folder_beside_the_socket_is_fine():
    assert host_config(container=replace(CONTAINER, mounts=(Mount("/srv/docker", "/x"),)))["Mounts"]


@pytest.mark.parametrize("network", ["none", "host", "container:abc"])
def test_a_network_on_which_nobody_can_call_it_is_refused(network):
    with pytest.raises(PermanentError, match=f"SS532.*{network}"):
        config(replace(CONTAINER, network=network))


def test_the_cache_volume_is_there_for_those_who_cache():
    (cache,) = host_config(command=replace(COMMAND, caches=("/cache/hf",)))["Mounts"]
    assert (cache["Type"], cache["Source"], cache["Target"]) == ("volume", "the-cache", "/cache")


def test_gpus_are_those_of_the_placement():
    placed = config(placement=Placement("local", ("1", "3")))
    (request,) = placed["HostConfig"]["DeviceRequests"]
    assert request == {"Driver": "nvidia", "DeviceIDs": ["1", "3"], "Capabilities": [["gpu"]]}
    assert "NVIDIA_VISIBLE_DEVICES=1,3" in placed["Env"]


def test_no_variable_opens_more_gpus():
    assert "NVIDIA_VISIBLE_DEVICES=void" in config(env={"NVIDIA_VISIBLE_DEVICES": "all"})["Env"]


def test_the_users_variables_come_before_the_engines_own():
    assert "OWN=2" in config(env={"OWN": "2", "A": "b=c"})["Env"]
    assert "A=b=c" in config(env={"A": "b=c"})["Env"]


def test_the_images_program_is_left_alone_where_nothing_is_secret():
    plain = config(command=replace(COMMAND, args=()))
    assert "Entrypoint" not in plain
    assert "Cmd" not in plain
    assert "OpenStdin" not in plain


def test_what_is_secret_goes_through_the_shell_that_becomes_the_images_program():
    handover = Handover((("engine-key", "canary-1"), ("hf-token", "canary-2")), (("KEY", "canary-3"),))
    made = config(handover=handover)
    assert made["Entrypoint"] == ["/bin/sh", "-c", entry.SCRIPT, "servestate"]
    assert made["Cmd"] == ["vllm", "serve", "--port", "8000"]
    assert entry.FOLDER in made["HostConfig"]["Tmpfs"]
    assert (made["OpenStdin"], made["StdinOnce"], made["AttachStdin"]) == (True, True, True)
    assert "HF_TOKEN_PATH=/run/servestate/hf-token" in made["Env"]
    assert "canary" not in repr(made) + repr(handover)


def test_the_images_own_command_follows_the_shell_where_there_are_no_arguments():
    made = config(command=replace(COMMAND, args=()), handover=Handover(env=(("KEY", "x"),)))
    assert made["Cmd"] == ["vllm", "serve", "--help"]
