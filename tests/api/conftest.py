"""One guarded site for the whole run: starting it takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.api.guarded", "tests.clients.harness", "tests.cli.harness")

from tests.api.guarded import Guarded, guarded_site  # noqa: E402  # after the line above, see there


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The site; tests leave its endpoints as they are, and delete what they make."""
    with guarded_site(tmp_path_factory.mktemp("guarded")) as site:
        yield site
