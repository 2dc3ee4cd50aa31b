"""M5 through the command line: what an engine prints of its secrets is told nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.cli.harness import local, until
from tests.containers.harness import ContainerSite, image_of

pytestmark = pytest.mark.slow

CANARY = "canary-5be1"
VARIABLE = "SERVESTATE_SECRET_TESTS__TOKEN"
TELLS = "echo token=$TOKEN; exec httpd -f -p {port} -h /www"


@pytest.fixture
def site(engine: docker.DockerClient, tmp_path: Path) -> Iterator[ContainerSite]:
    """A site of this test on the machine's engine."""
    made = ContainerSite(tmp_path / "site", client=engine)
    try:
        yield made
    finally:
        made.clean_up()


def told(site: ContainerSite) -> dict[str, str]:
    """All that commands say and write of the site, by what said it."""
    verbs = (("logs", "chat"), ("status",), ("status", "--json"), ("plan", "--out", "saved.json"))
    verbs = (*verbs, ("plan", "--json"))
    found = {" ".join(verb): (result := site.run(*verb)).out + result.err for verb in verbs}
    saved = (site.folder / "saved.json").read_text()
    state = b"".join(path.read_bytes() for path in site.database.parent.glob("state.db*"))
    return {**found, "plan file": saved, "state": state.decode(errors="replace")}


def test_what_an_engine_prints_of_its_secrets_is_told_nowhere(site: ContainerSite, tiny: str) -> None:
    """By commands that have not launched it: while it runs, after it ended, and without the secret."""
    version = image_of(tiny, argv=["sh", "-c", TELLS], env={"TOKEN": "{{secrets/tests/token}}"})
    site.env[VARIABLE] = CANARY
    site.contain({"chat": {"only": local("1")}}, {"1": version})
    site.apply()
    (container,) = site.containers()
    until(lambda: CANARY in container.logs().decode(), "the engine has told its secret")
    assert "token=***" in told(site)["logs chat"]
    container.kill()
    container.wait()
    said = told(site)
    assert "token=***" in said["logs chat"]
    assert "token=***" in said["plan --out saved.json"]
    del site.env[VARIABLE]
    unset = told(site)
    assert "cannot be masked" in unset["logs chat"]
    assert [by for every in (said, unset) for by, text in every.items() if CANARY in text] == []
