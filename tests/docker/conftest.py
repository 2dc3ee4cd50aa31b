"""A real Docker Engine and the images of the tests. Nothing that a test makes outlives it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

pytest.register_assert_rewrite("tests.docker.engine", "tests.docker.images", "tests.docker.registry")

from tests.docker import images  # noqa: E402  # after the line above, or asserts there would say nothing
from tests.docker.engine import OwnEngine, Scratch, connect  # noqa: E402
from tests.docker.registry import Registry, registry  # noqa: E402


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The machine's engine."""
    client = connect()
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def scratch(engine: docker.DockerClient) -> Iterator[Scratch]:
    """Containers, volumes and networks of this test."""
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
def own_engine(engine: docker.DockerClient, socket_folder: Path) -> Iterator[OwnEngine]:
    """An engine of this test with live-restore."""
    with OwnEngine(socket_folder / "engine", live_restore=True) as own:
        yield own
    assert own.leftovers() == []


@pytest.fixture
def local_registry(tmp_path: Path) -> Iterator[Registry]:
    """An empty registry without accounts."""
    with registry(tmp_path / "registry") as made:
        yield made


@pytest.fixture
def tiny(engine: docker.DockerClient) -> str:
    """The reference of the image."""
    return images.tiny(engine)


@pytest.fixture
def engine_double(engine: docker.DockerClient) -> str:
    """The reference of the image."""
    return images.engine_double(engine)


@pytest.fixture
def llamacpp(engine: docker.DockerClient) -> str:
    """The reference of the image."""
    return images.llamacpp(engine)
