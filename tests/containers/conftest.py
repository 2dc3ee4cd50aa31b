"""Sites of containers on a real Docker Engine; nothing that a test started outlives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

pytest.register_assert_rewrite(
    "tests.cli.harness",
    "tests.containers.harness",
    "tests.docker.engine",
    "tests.docker.images",
    "tests.docker.registry",
)

from tests.containers.harness import ContainerSite, unclaimed  # noqa: E402  # after the line above
from tests.docker.conftest import (  # noqa: E402
    engine,
    engine_double,
    llamacpp,
    local_registry,
    own_engine,
    scratch,
    socket_folder,
    tiny,
)

__all__ = [
    "engine",
    "engine_double",
    "llamacpp",
    "local_registry",
    "own_engine",
    "scratch",
    "socket_folder",
    "tiny",
]


@pytest.fixture
def site(engine: docker.DockerClient, tmp_path: Path) -> Iterator[ContainerSite]:
    """A site of this test on the machine's engine."""
    before = unclaimed(engine)
    made = ContainerSite(tmp_path / "site", client=engine)
    try:
        yield made
    finally:
        made.clean_up()
    assert unclaimed(engine) <= before, "a container of this test is left, and wears no marks"
