"""The providers of a site, by the name that specs use."""

from __future__ import annotations

from pathlib import Path

from servestate.planner.spec import site
from servestate.providers.external import ExternalProvider
from servestate.providers.ports import Ports
from servestate.providers.process import ProcessProvider
from servestate.providers.protocol import Provider
from servestate.providers.secrets import Secrets


def build(
    root: Path,
    base_dir: Path,
    secrets: Secrets,
    process: site.ProcessProvider,
    docker: site.DockerProvider | None,
) -> dict[str, Provider]:
    """Every provider that reaches a real world, the one for containers where the site has settings for it.
    `root` is the run directory, `base_dir` the bundle's folder. Building one touches nothing."""
    ports = Ports(process.port_range.start, process.port_range.stop - 1)
    providers: list[Provider] = [
        ProcessProvider(root, base_dir, secrets, ports, gpus=process.gpus),
        ExternalProvider(secrets),
    ]
    if docker is not None:
        from servestate.providers.docker import DockerProvider  # here: most sites need none of it

        providers.append(DockerProvider(docker, base_dir, secrets))
    return {provider.name: provider for provider in providers}
