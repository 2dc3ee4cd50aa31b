"""What a launch is given beyond the least that a container gets, in lines for whoever reviews a plan."""

from __future__ import annotations

from collections.abc import Iterator

from servestate.planner.launch import Container, LaunchSpec
from servestate.planner.served_name import MODEL_FOLDER

_DEFAULT = Container("")
_ROOT = ("0", "root")
_CACHING = ("vllm", "transformers", "mlflow")
"""The engines that keep downloaded weights and compiled kernels on the host; see their `caches`."""


def grants(spec: LaunchSpec) -> Iterator[str]:
    """A line each; nothing for what runs with the least."""
    if spec.option("trust_remote_code"):
        yield "WARNING: runs code that comes with the model (trust_remote_code)"
    if spec.container is not None:
        if spec.container.user.partition(":")[0] in _ROOT:
            yield "WARNING: runs as root in its container (user)"
        given = [*_given(spec.container), *_weights(spec), *_cache(spec), *_devices(spec)]
        if given:
            yield f"granted to its container: {', '.join(given)}"


def _weights(spec: LaunchSpec) -> Iterator[str]:
    scheme, _, path = spec.source.partition("://")
    if scheme == "file":
        yield f"{path} at {MODEL_FOLDER}"


def _cache(spec: LaunchSpec) -> Iterator[str]:
    if spec.engine in _CACHING:
        yield "the writable cache volume of its host"


def _devices(spec: LaunchSpec) -> Iterator[str]:
    if spec.gpus:
        yield "the GPUs above"


def _given(container: Container) -> Iterator[str]:
    if not container.read_only:
        yield "a writable root"
    if container.shm:
        yield f"{container.shm / 2**30:g} GiB of shared memory"
    if container.network != _DEFAULT.network:
        yield f"the network {container.network}"
    for mount in container.mounts:
        yield f"{mount.source} at {mount.target}{'' if mount.read_only else ', writable'}"
