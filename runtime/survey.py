"""Gathers what a plan must know of the world beside the instances: hosts, images, models.

Only what the desired entities need is asked for: where everything runs as processes without GPUs, nothing is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from servestate.planner.launch import LaunchSpec
from servestate.planner.resolve import Resolved
from servestate.planner.surroundings import ALONE, Host, ImageFacts, Surroundings
from servestate.providers.protocol import ImageKeeper, PermanentError, Provider, Surveyor, TransientError
from servestate.providers.secrets import Secrets, fill

if TYPE_CHECKING:
    from servestate.planner.fit_facts import ModelFacts

_TOKEN = "HF_TOKEN"  # noqa: S105  # the name of a variable


async def survey(
    desired: Resolved,
    lineage: str,
    providers: Mapping[str, Provider],
    secrets: Secrets,
    base_dir: Path,
    pull: str,
    *,
    estimates: bool = True,
) -> Surroundings:
    """The surroundings of a plan for `desired` in the state of `lineage`; `pull` is the policy for images.
    Without `estimates` no model is read, which may be far away: what ran before fits."""
    wanted = [(entity.spec, entity.hosts) for endpoint in desired.endpoints for entity in endpoint.entities]
    placed = [(s, h) for s, h in wanted if isinstance(s, LaunchSpec) and (s.gpus or s.container is not None)]
    if not placed:
        return ALONE
    specs = [spec for spec, _ in placed]
    hosts, images, (models, troubles) = await asyncio.gather(
        survey_hosts(providers, {spec.provider for spec in specs}, lineage),
        _images(placed, providers, pull),
        _models([spec for spec in specs if spec.gpus and estimates], secrets, base_dir),
    )
    return Surroundings(hosts, images, models, troubles)


async def survey_hosts(
    providers: Mapping[str, Provider], names: Iterable[str], lineage: str
) -> Mapping[tuple[str, str], Host]:
    """The hosts of those providers that have any, by provider and host name."""
    asked = [(n, p) for n in sorted(names) if isinstance(p := providers[n], Surveyor)]
    found = await asyncio.gather(*(provider.hosts(lineage) for _, provider in asked))
    return {(name, host.name): host for (name, _), hosts in zip(asked, found, strict=True) for host in hosts}


async def _images(
    placed: list[tuple[LaunchSpec, tuple[str, ...]]], providers: Mapping[str, Provider], pull: str
) -> dict[tuple[str, str], ImageFacts]:
    wanted = {
        (host, spec.container.image): providers[spec.provider]
        for spec, hosts in placed
        if spec.container is not None
        for host in hosts
    }
    found = await asyncio.gather(*(_image(p, host, image, pull) for (host, image), p in wanted.items()))
    return dict(zip(wanted, found, strict=True))


async def _image(provider: Provider, host: str, image: str, pull: str) -> ImageFacts:
    assert isinstance(provider, ImageKeeper), "what runs containers can say what its images are"
    try:
        return await provider.image(host, image, pull)
    except TransientError as error:
        return ImageFacts(trouble=str(error))


async def _models(
    specs: Iterable[LaunchSpec], secrets: Secrets, base_dir: Path
) -> tuple[dict[str, ModelFacts], dict[str, str]]:
    """What the headers of each model say, and by source why they could not be read."""
    by_source = {spec.source: spec for spec in specs if spec.source}
    read = await asyncio.gather(
        *(asyncio.to_thread(_read, spec, secrets, base_dir) for spec in by_source.values())
    )
    results = dict(zip(by_source, read, strict=True))
    models = {source: facts for source, facts in results.items() if not isinstance(facts, str)}
    return models, {source: why for source, why in results.items() if isinstance(why, str)}


def _read(spec: LaunchSpec, secrets: Secrets, base_dir: Path) -> ModelFacts | str:
    from servestate.providers.model_facts import read_model_facts  # here: most plans read none

    try:
        token = next((fill(value, secrets) for name, value in spec.env if name == _TOKEN), None)
        revision = str(spec.option("revision") or "")
        return read_model_facts(spec.source, base_dir, revision=revision, token=token)
    except PermanentError as error:
        return error.what
    except TransientError as error:
        return str(error)
