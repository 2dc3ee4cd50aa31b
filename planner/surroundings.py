"""Surroundings: what a plan has to know of the world beside the instances: hosts, GPUs, images, models.

Gathered by the runtime before planning, from the providers' surveys and from headers of model files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servestate.planner.fit import ModelFacts


Facts = tuple[tuple[str, str], ...]
"""What was observed of something, by field name, sorted."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `id` is what a launch names it by; `memory` is bytes in all. `used` is bytes in use now, None
    where nobody can be asked. `holders` are things that hold it and are not of this lineage, for people;
    `fault` says why nothing may be put on it."""

    id: str
    memory: int
    name: str = ""
    used: int | None = None
    holders: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """A place that instances run on. `trouble` says why nothing can be started there, `gpu_trouble` why no
    GPU can be given to what is started there; both are empty where all is well."""

    name: str
    gpus: tuple[Gpu, ...] = ()
    trouble: str = ""
    gpu_trouble: str = ""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image's name means on one host. `digest` is `sha256:…`, empty where `trouble` says why it is
    not known; `present` says whether it is there, `portable` whether another host can pull that digest from
    a registry; `size` is bytes, 0 unknown."""

    digest: str = ""
    present: bool = False
    portable: bool = False
    size: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All of it. `hosts` is by provider and host name: one machine may give GPUs to processes and not to
    containers, while a GPU on it is the same for both. `images` is by host and image name; `models` by
    source, and `model_troubles` says by source why a model's headers could not be read, which makes no
    estimate rather than an error."""

    hosts: Mapping[tuple[str, str], Host] = field(default_factory=dict)
    images: Mapping[tuple[str, str], ImageFacts] = field(default_factory=dict)
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    model_troubles: Mapping[str, str] = field(default_factory=dict)


ALONE = Surroundings()
"""Nothing is known, as where only local processes without GPUs are planned."""


def host_facts(surroundings: Surroundings, provider: str, name: str) -> Facts:
    """What a plan that puts something on a GPU of that host relies on."""
    host = surroundings.hosts.get((provider, name))
    if host is None:
        return (("status", "not asked"),)
    gpus = ", ".join(f"{gpu.id} ({gpu.memory} bytes{', faulty' * bool(gpu.fault)})" for gpu in host.gpus)
    return (("gpus", gpus), ("trouble", host.trouble or host.gpu_trouble))
