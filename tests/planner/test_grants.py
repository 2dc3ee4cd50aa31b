"""What a reviewer is told that a launch gets beyond the least."""

from __future__ import annotations

import pytest

from servestate.planner.grants import grants
from servestate.planner.launch import Container, LaunchSpec, Mount


def told(container: Container | None = None, **spec: object) -> list[str]:
    return list(grants(LaunchSpec("docker", "llamacpp", "m", container=container, **spec)))  # type: ignore[arg-type]


def test_nothing_beyond_the_least_is_not_mentioned() -> None:
    assert told() == told(Container("image")) == told(Container("image", user="1000:1000")) == []


@pytest.mark.parametrize(
    ("container", "line"),
    [
        (Container("image", read_only=False), "a writable root"),
        (Container("image", shm=3 << 29), "1.5 GiB of shared memory"),
        (Container("image", network="host"), "the network host"),
        (Container("image", mounts=(Mount("/srv/a", "/a"),)), "/srv/a at /a"),
        (Container("image", mounts=(Mount("/srv/a", "/a", read_only=False),)), "/srv/a at /a, writable"),
    ],
)
def test_each_grant_is_named(container: Container, line: str) -> None:
    assert told(container) == [f"granted to its container: {line}"]


@pytest.mark.parametrize("user", ["0", "0:0", "root:root"])
def test_root_is_a_warning(user: str) -> None:
    assert told(Container("image", user=user)) == ["WARNING: runs as root in its container (user)"]


def test_gpus_are_granted_to_containers_only() -> None:
    assert told(Container("image"), gpus=1) == ["granted to its container: the GPUs above"]
    assert told(gpus=1) == []


@pytest.mark.parametrize("container", [None, Container("image")])
def test_code_that_comes_with_the_model_is_a_warning_wherever_it_runs(container: Container | None) -> None:
    (line,) = told(container, options=(("trust_remote_code", True),))
    assert line.startswith("WARNING")
    assert told(container, options=(("trust_remote_code", False),)) == []


def test_the_weights_and_the_cache_of_its_engine_are_granted() -> None:
    spec = LaunchSpec("docker", "vllm", "m", source="file:///srv/llama", container=Container("image"))
    (line,) = grants(spec)
    assert line == ("granted to its container: /srv/llama at /models, the writable cache volume of its host")
