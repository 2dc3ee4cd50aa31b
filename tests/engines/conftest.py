"""Real engines take minutes and environments of their own, so their tests run only where they are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.engines.site")

from tests.engines.site import Environment, Site  # noqa: E402  # after the line above, or asserts there are silent

NAMED_ONLY = ("vllm", "engines")
"""Markers whose tests are left out unless `-m` names them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = str(config.option.markexpr)
    hidden = [name for name in NAMED_ONLY if name not in asked]
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in hidden)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site in a folder of its own; nothing that it started outlives the module."""
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        yield made
    finally:
        made.clean_up()


@pytest.fixture(scope="session")
def vllm() -> Environment:
    """The environment that `make test-vllm` installs."""
    return Environment.of("vllm")


@pytest.fixture(scope="session")
def engines() -> Environment:
    """The environment that `make test-engines` installs."""
    return Environment.of("engines")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's models are made."""
    return tmp_path_factory.mktemp("models")
