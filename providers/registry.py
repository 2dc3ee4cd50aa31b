"""The providers of a site, by the name that specs use."""

from __future__ import annotations

from pathlib import Path

from servestate.providers.external import ExternalProvider
from servestate.providers.ports import Ports
from servestate.providers.process import ProcessProvider
from servestate.providers.protocol import Provider
from servestate.providers.secrets import Secrets


def build(root: Path, base_dir: Path, secrets: Secrets, ports: range) -> dict[str, Provider]:
    """Every provider that reaches a real world. `root` is the run directory, `base_dir` the bundle's
    folder, `ports` where local engines listen. Building one touches nothing."""
    process = ProcessProvider(root, base_dir, secrets, Ports(ports.start, ports.stop - 1))
    providers: tuple[Provider, ...] = (process, ExternalProvider(secrets))
    return {provider.name: provider for provider in providers}
