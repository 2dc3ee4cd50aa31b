"""Sites of containers on a real Docker Engine; nothing that a test started outlives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

pytest.register_assert_rewrite(
    "tests.cli.harness",
    "tests.cli.snapshots",
    "tests.cli.sweep",
    "tests.containers.harness",
    "tests.containers.snapshots",
    "tests.docker.engine",
    "tests.docker.images",
    "tests.docker.registry",
)

from tests.cli.harness import until  # noqa: E402  # after the line above, or asserts there would say nothing
from tests.containers.harness import ContainerSite, unclaimed  # noqa: E402
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
    until(lambda: unclaimed(engine) <= before, "every container of this test is gone, marked or not")
