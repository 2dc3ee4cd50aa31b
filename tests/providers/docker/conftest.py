"""A site of its own for every test, on the machine's Docker Engine. Nothing that a test makes outlives it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

pytest.register_assert_rewrite("tests.docker.engine", "tests.docker.images", "tests.docker.registry")

from tests.docker import images  # noqa: E402  # after the line above, or asserts there would say nothing
from tests.docker.engine import Scratch  # noqa: E402
from tests.providers.docker.place import DockerSite, opened, settled  # noqa: E402


@pytest.fixture
def settle():
    return settled


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DockerSite]:
    with opened(tmp_path) as made:
        yield made


@pytest.fixture
def engine(place: DockerSite) -> docker.DockerClient:
    """The machine's engine."""
    return place.client


@pytest.fixture
def scratch(engine: docker.DockerClient) -> Iterator[Scratch]:
    """Containers, volumes and networks that are none of ours."""
    made = Scratch(engine)
    try:
        yield made
    finally:
        made.clear()


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder whose path is short: the path of a unix socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="ss-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def tiny(engine: docker.DockerClient) -> str:
    """The reference of the image."""
    return images.tiny(engine)


@pytest.fixture
def double(engine: docker.DockerClient) -> str:
    """The reference of the image."""
    return images.engine_double(engine)
