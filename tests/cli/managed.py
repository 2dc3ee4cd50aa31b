"""A site that is served, and clients of it in folders of their own."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from servestate.planner.spec.site import Site as SiteBlock
from servestate.runtime.workspace import open_workspace
from tests.cli.harness import Conversation, Site, until

TESTER = "tester"
"""Whose token clients have, unless they are given another."""

AUTHORIZATION = {"Authorization": f"Bearer token-of-{TESTER}"}

_MANAGING = re.compile(r"servestate: managing on (\S+)")


@dataclass
class Managed:
    """A running `servestate serve` of that site. `url` is its management listener's."""

    site: Site
    url: str
    process: Conversation

    def client(self, folder: Path, text: str | None = None, **env: str) -> Site:
        """Somebody elsewhere with that bundle, the site's own where none is given."""
        made = Site(folder, {"SERVESTATE_TOKEN": f"token-of-{TESTER}", **env})
        made.folder.mkdir(parents=True)
        written = text if text is not None else (self.site.folder / "endpoints.yaml").read_text()
        (made.folder / "endpoints.yaml").write_text(written)
        return made

    def stop(self) -> None:
        """End it as a person does."""
        if self.process.process.poll() is None:
            self.process.process.send_signal(signal.SIGTERM)
            self.process.end()


@contextmanager
def managed(site: Site, *arguments: str) -> Iterator[Managed]:
    """The configured site, served; the flags are those of `serve`. Where it declares no tokens, it gets one
    that may everything: nobody applies from elsewhere without."""
    file = site.folder / "endpoints.yaml"
    if "access" not in yaml.safe_load(file.read_text())["servestate"]:
        site.write(with_site(file.read_text(), access=tokens({TESTER: ["admin"]})))
        site.env["SERVESTATE_TOKEN"] = f"token-of-{TESTER}"
    process = site.watch("serve", *arguments)
    process.wait_for("servestate: routing on ")
    api = open_workspace(site.folder, SiteBlock()).api_path
    until(lambda: _accepts(api), "the API is there")
    url = _MANAGING.search(process.seen)
    assert url is not None, process.seen
    found = Managed(site, url[1], process)
    try:
        yield found
    finally:
        found.stop()


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


def only_endpoints(text: str) -> str:
    """The bundle without its site."""
    return yaml.safe_dump({key: value for key, value in yaml.safe_load(text).items() if key != "servestate"})


def with_site(text: str, **parts: Any) -> str:
    """The bundle with further parts of the site."""
    document = yaml.safe_load(text)
    document["servestate"] = {**document.get("servestate", {}), **parts}
    return yaml.safe_dump(document, sort_keys=False)


def tokens(rights: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """`servestate.access` of callers with these rights; the token of each is `token-of-NAME`."""
    declared = [
        {
            "user_name": name,
            "rights": list(given),
            "sha256": hashlib.sha256(f"token-of-{name}".encode()).hexdigest(),
        }
        for name, given in rights.items()
    ]
    return {"tokens": declared}
