"""What `docker inspect` says, read."""

from __future__ import annotations

import copy

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import Placement
from servestate.planner.live import LiveStatus
from servestate.providers.docker import facts, marks
from servestate.providers.labels import Worn
from servestate.providers.protocol import Marks

ADDRESS = InstanceAddress("chat", "current", "3f9a1c27")
WORN = Worn(Marks("a-lineage", ADDRESS, 7, "an-op", Placement("gpu-1", ("0",))), "a-nonce", 8000)
STARTED = "2026-11-22T00:47:43.796836247Z"
RUNNING = {
    "Id": "c5ff",
    "Name": "/servestate-chat",
    "Image": "sha256:bb",
    "State": {"Status": "running", "StartedAt": STARTED, "ExitCode": 0, "OOMKilled": False, "Error": ""},
    "Config": {"User": "65534:65534", "Labels": {**marks.to_labels(WORN), "other": "x"}},
    "HostConfig": {
        "NetworkMode": "bridge",
        "Memory": 1024,
        "MemorySwap": 1024,
        "NanoCpus": 1_500_000_000,
        "PidsLimit": 99,
        "RestartPolicy": {"Name": "no"},
        "ReadonlyRootfs": True,
    },
    "NetworkSettings": {
        "Ports": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32877"}], "9000/tcp": None},
        "Networks": {"bridge": {}},
    },
}


def inspected(**state):
    raw = copy.deepcopy(RUNNING)
    raw["State"] |= state
    return raw


def read(raw, address="127.0.0.1"):
    found = facts.read("gpu-1", address, raw)
    assert found is not None
    return found


def test_a_running_container_is_reported_with_all_that_may_drift():
    seen = read(RUNNING).observation("docker")
    assert (seen.address, seen.provider, seen.status, seen.why) == (ADDRESS, "docker", LiveStatus.RUNNING, "")
    assert seen.handle == f"gpu-1/c5ff/{STARTED}"
    assert seen.url == "http://127.0.0.1:32877"
    assert seen.placement == Placement("gpu-1", ("0",))
    assert dict(seen.fields) == {
        "cpus": "1.5",
        "image": "sha256:bb",
        "labels": marks.digest(marks.to_labels(WORN)),
        "memory": "1024",
        "memory_swap": "1024",
        "name": "servestate-chat",
        "networks": "bridge",
        "pids": "99",
        "read_only": "True",
        "restart": "no",
        "user": "65534:65534",
    }
    assert list(seen.fields) == sorted(seen.fields)


CHANGES = [
    ("name", lambda raw: raw.update(Name="/other")),
    ("image", lambda raw: raw.update(Image="sha256:cc")),
    ("memory", lambda raw: raw["HostConfig"].update(Memory=2048)),
    ("memory_swap", lambda raw: raw["HostConfig"].update(MemorySwap=-1)),
    ("cpus", lambda raw: raw["HostConfig"].update(NanoCpus=0)),
    ("pids", lambda raw: raw["HostConfig"].update(PidsLimit=None)),
    ("restart", lambda raw: raw["HostConfig"].update(RestartPolicy={"Name": "always"})),
    ("networks", lambda raw: raw["NetworkSettings"].update(Networks={})),
    ("user", lambda raw: raw["Config"].update(User="")),
    ("read_only", lambda raw: raw["HostConfig"].update(ReadonlyRootfs=False)),
    ("labels", lambda raw: raw["Config"]["Labels"].update({marks.OP: "another"})),
]


@pytest.mark.parametrize(("field", "change"), CHANGES, ids=[field for field, _ in CHANGES])
def test_every_change_shows_in_its_field_and_in_no_other(field, change):
    raw = copy.deepcopy(RUNNING)
    change(raw)
    before, after = dict(read(RUNNING).fields), dict(read(raw).fields)
    assert [name for name in before if before[name] != after[name]] == [field]


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("running", LiveStatus.RUNNING),
        ("restarting", LiveStatus.RUNNING),
        ("paused", LiveStatus.PAUSED),
        ("created", LiveStatus.EXITED),
        ("exited", LiveStatus.EXITED),
        ("dead", LiveStatus.EXITED),
        ("removing", LiveStatus.EXITED),
    ],
)
def test_every_state_of_docker_is_one_of_ours(state, status):
    assert read(inspected(Status=state)).status is status


def test_one_that_was_never_started_says_so():
    found = read(inspected(Status="created", StartedAt=facts.NEVER))
    assert found.handle == "gpu-1/c5ff/created"
    assert found.unstarted
    assert found.why((), 0).text == "it was created but never started"
    failed = read(inspected(Status="created", StartedAt=facts.NEVER, Error="no such device"))
    assert not failed.unstarted
    assert failed.why((), 0).text == "it was created but never started: no such device"


def test_the_end_is_told_with_its_cause_and_the_log():
    found = read(inspected(Status="exited", ExitCode=137, OOMKilled=True))
    why = found.why(["one", "two", "three"], 2)
    assert why.code == "SS511"
    assert "137" in why.text
    assert "memory" in why.text
    assert why.text.splitlines()[1:] == ["| two", "| three"]


def test_the_daemons_own_error_is_the_last_line():
    found = read(inspected(Status="exited", ExitCode=127, Error="exec: no such file or directory"))
    assert found.why(["one"], 5).text.splitlines()[1:] == ["| one", "| exec: no such file or directory"]


def test_what_wears_no_readable_marks_is_not_ours():
    raw = copy.deepcopy(RUNNING)
    raw["Config"]["Labels"] = {marks.LINEAGE: "a-lineage"}
    assert facts.read("gpu-1", "127.0.0.1", raw) is None
    raw["Config"]["Labels"] = None
    assert facts.read("gpu-1", "127.0.0.1", raw) is None


def test_where_it_answers():
    assert read(RUNNING, "10.0.0.7").url == "http://10.0.0.7:32877"
    assert read(RUNNING, "fd00::7").url == "http://[fd00::7]:32877"
    ended = copy.deepcopy(RUNNING)
    ended["NetworkSettings"]["Ports"] = {}
    assert read(ended).url == ""


def test_handles_are_read_back():
    assert facts.parse_handle(f"a/b/c5ff/{STARTED}") == ("a/b", "c5ff", STARTED)
    assert facts.parse_handle("a/c5ff/created") == ("a", "c5ff", "")
    for handle in ("", "nonsense", "1.1.0000", "external:nowhere", "a/b", "/b/c", "a//c", "a/b/"):
        assert facts.parse_handle(handle) is None


def test_an_image_is_read_whatever_it_leaves_out():
    raw = {"Id": "sha256:bb", "Config": {"User": "vllm", "Entrypoint": ["a"], "Cmd": None}}
    image = facts.image("x@sha256:aa", raw)
    assert (image.user, image.entrypoint, image.command) == ("vllm", ("a",), ())
    assert facts.image("x", {"Id": "sha256:bb", "Config": None}).entrypoint == ()
