"""A registry on loopback for the tests of pulls. dockerd speaks plain HTTP with 127.0.0.0/8 by default."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import docker

from tests.docker.engine import until
from tests.ports import free_port

PROGRAM: Final = "docker-registry"
ACCOUNT: Final = {"username": "puller", "password": "of-the-tests"}
"""Who may push and pull where the registry asks."""
HTPASSWD: Final = "puller:$2y$05$BzVOhvzvN/UPZOazyDEkHe6n8mQUcwnziiQGGm9TGIW66o6d4hYKa\n"

CONFIG: Final = """version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
AUTH: Final = """auth: {{htpasswd: {{realm: tests, path: {file}}}}}
"""


@dataclass(frozen=True)
class Registry:
    """One that runs. `auth_config` is what the SDK's push and pull take."""

    port: int
    auth_config: dict[str, str] | None
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def push(self, client: docker.DockerClient, image: str, name: str = "pulled:1") -> str:
        """Push a local image under a name of this registry: its reference there by digest, as pulls pin it.

        The local tag is taken off again, so that a pull has something to do.
        """
        reference = f"{self.address}/{name}"
        client.images.get(image).tag(reference)
        said = list(client.api.push(reference, auth_config=self.auth_config, stream=True, decode=True))
        errors = [line["error"] for line in said if "error" in line]
        assert not errors, errors
        (digest,) = [line["aux"]["Digest"] for line in said if "aux" in line]
        client.images.remove(reference)
        return f"{self.address}/{name.partition(':')[0]}@{digest}"

    def stop(self) -> None:
        """End it, as an outage would."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def registry(folder: Path, authenticated: bool = False) -> Iterator[Registry]:
    """An empty one that keeps its files in `folder`; with `authenticated` it knows one account."""
    assert shutil.which(PROGRAM), f"{PROGRAM} is missing: apt-get install {PROGRAM}"
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = CONFIG.format(root=folder / "data", port=port)
    if authenticated:
        (folder / "htpasswd").write_text(HTPASSWD)
        config += AUTH.format(file=folder / "htpasswd")
    (folder / "config.yml").write_text(config)
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", folder / "config.yml"], stdout=log, stderr=log)
    made = Registry(port, ACCOUNT if authenticated else None, process)
    try:
        until(lambda: process.poll() is not None or _answers(made), "the registry answers")
        assert process.poll() is None, (folder / "registry.log").read_text()
        yield made
    finally:
        made.stop()


def _answers(made: Registry) -> bool:
    try:
        with urllib.request.urlopen(f"http://{made.address}/v2/", timeout=1):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 401
    except OSError:
        return False
