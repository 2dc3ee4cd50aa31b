"""The rules of Docker: hosts, where workload types run, images, and what containers may have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from servestate.planner.launch import LOCAL
from servestate.planner.spec import host_paths
from servestate.planner.spec.characters import shorten
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.report import Report
from servestate.planner.spec.site import (
    ContainerSettings,
    DeclaredGpu,
    DockerHost,
    DockerProvider,
    Site,
    WorkloadType,
)
from servestate.planner.spec.suggest import did_you_mean
from servestate.planner.spec.versions import Listed, listed

Problem = tuple[str, str, tuple[str | int, ...]]
"""What is wrong, how to mend it, and where below the thing that is judged."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,252})"
_UNIX = re.compile(r"unix:///[^\s?#]+\Z")
_SSH = re.compile(rf"ssh://(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?(?P<host>{_HOST})(?::[0-9]{{1,5}})?\Z")
_TCP = re.compile(rf"tcp://(?P<host>{_HOST}|\[[0-9A-Fa-f:.]+\]):[0-9]{{1,5}}\Z")
_ADDRESS = re.compile(rf"{_HOST}\Z")
_GPU_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9:/-]*\Z")
_URL_FIX = "write unix:///PATH, ssh://USER@HOST or tcp://HOST:PORT"

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?P<digest>@sha256:[0-9a-f]{64})?\Z"
)
_USER = re.compile(r"(?P<user>[0-9]{1,10})(?::[0-9]{1,10})?\Z")
_LEAST_MEMORY = 6 * 2**20
"""Docker's own minimum."""


def hosts(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Docker Engines that can be reached, told apart, and not by just anybody; GPUs that can be."""
    for what, fix, field in _gpu_problems(site.providers.process.gpus):
        report.error("SS188", what, fix, "providers", "process", *field)
    docker, at = site.providers.docker, ("providers", "docker")
    if docker is None:
        return
    if not _NAME.match(docker.cache):
        what = f'"{shorten(docker.cache)}" cannot be the name of a volume'
        report.error("SS188", what, "use letters, digits, dots, dashes and underscores", *at, "cache")
    for key in DockerHost.model_fields if docker.hosts else ():
        if report.is_written(*at, key):
            what = f"{key} is given beside hosts, which each have their own"
            report.error("SS188", what, f"move it to one of {', '.join(sorted(docker.hosts))}", *at, key)
    engines: dict[str, str] = {}
    for name, host in docker.by_name.items():
        below = (*at, "hosts", name) if docker.hosts else at
        for what, fix, path in _host_problems(name, host):
            report.error("SS188", what, fix, *below, *path)
        first = engines.setdefault(host.url, name)
        if first != name:
            what = f"the hosts {shorten(first)} and {shorten(name)} are one Docker Engine"
            report.error("SS188", what, "keep one of them: each would count its GPUs", *below, "url")


def _host_problems(name: str, host: DockerHost) -> Iterator[Problem]:
    if not _NAME.match(name):
        yield f'"{shorten(name)}" cannot be the name of a host', "use letters, digits, dashes and dots", ()
    machine = _machine(host.url)
    if machine is None:
        yield "url is not that of a Docker Engine", _URL_FIX, ("url",)  # not shown: it may hold a password
    else:
        yield from _reach_problems(name, host, machine)
    yield from _gpu_problems(host.gpus)
    for index, path in enumerate(host.allowed_paths):
        problem = host_paths.source_problem(path) if path.startswith("/") else "is not absolute"
        if problem:
            what = f'allowed_paths has "{shorten(path)}", which {problem}'
            yield what, "name the folders that hold models and data", ("allowed_paths", index)


def _reach_problems(name: str, host: DockerHost, machine: str) -> Iterator[Problem]:
    """`machine` is the host part of the URL, "" for a socket of this machine."""
    tcp, far = host.url.startswith("tcp:"), bool(machine) and not _is_loopback(machine)
    if tcp and far and host.tls is None:
        what = f"the Docker Engine of {shorten(name)} is called without TLS, so whoever reaches it owns it"
        yield what, "add tls: {ca: …, cert: …, key: …}, or use ssh://", ("url",)
    if host.tls is not None and not tcp:
        yield "tls is for tcp:// and for nothing else", "remove it", ("tls",)
    if name == LOCAL and machine:
        what = f'the host "{LOCAL}" is this machine, and its url leads elsewhere'
        yield what, "give it a name of its own under hosts, or use unix:///PATH", ("url",)
    if not _ADDRESS.match(host.address) and not _is_ip(host.address):
        what = f'"{shorten(host.address)}" is neither an IP address nor the name of a host'
        yield what, "write the address that the router reaches the host by", ("address",)
    elif _is_everywhere(host.address):
        what = f'address "{host.address}" would publish engines on every network of the host'
        yield what, "write one address of the host, on a network that only the router is in", ("address",)
    elif far and _is_loopback(host.address):
        what = f"the router cannot reach engines of {shorten(name)} on its loopback address"
        yield what, "add address: the host's address on a network that only the router is in", ("address",)


def _gpu_problems(gpus: Sequence[DeclaredGpu] | None) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, gpu in enumerate(gpus or ()):
        if not _GPU_ID.match(gpu.id):
            yield f'"{shorten(gpu.id)}" is no GPU id', "write its index or UUID", ("gpus", index, "id")
        if gpu.id in seen:
            yield f'the GPU "{shorten(gpu.id)}" is given twice', "remove one", ("gpus", index, "id")
        if not gpu.memory:
            yield f'the GPU "{shorten(gpu.id)}" has no memory', 'write "80GiB"', ("gpus", index, "memory")
        seen.add(gpu.id)


def _machine(url: str) -> str | None:
    """The host part of a Docker Engine's URL, "" for a socket of this machine, None if it is no such URL."""
    if _UNIX.match(url) and ".." not in url.split("/"):
        return ""
    found = _SSH.match(url) or _TCP.match(url)
    return found["host"].strip("[]") if found else None


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ip_address(host).is_loopback)


def _is_everywhere(host: str) -> bool:
    return _is_ip(host) and ip_address(host).is_unspecified


def placements(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Workload types and overrides name hosts that there are; a share of a GPU needs a GPU."""
    known = sorted((site.providers.docker or DockerProvider()).by_name)
    for name, kind in site.workload_types.items():
        at = ("workload_types", name)
        if kind.gpu_fraction < 1 and not kind.gpus:
            what = f"{name} gets {kind.gpu_fraction:g} of no GPU"
            report.error("SS189", what, "add gpus: 1, or remove gpu_fraction", *at, "gpu_fraction")
        if kind.hosts and kind.provider == "process":
            what = f"{name} has hosts, and local processes run on this one"
            report.error("SS189", what, "use provider: docker, or remove hosts", *at, "hosts")
        else:
            _known_hosts(kind.hosts, name, known, at, report)
    for address, override in site.overrides.items():
        _known_hosts(override.hosts, f"the override of {address}", known, ("overrides", address), report)


def _known_hosts(
    named: Sequence[str], name: str, known: list[str], at: tuple[str, ...], report: Report
) -> None:
    for index, host in enumerate(named):
        if host not in known:
            what = f'{shorten(name)} runs on "{shorten(host)}", which is no host of providers.docker'
            fix = f"use one of {', '.join(known)}{did_you_mean(host, known)}"
            report.error("SS189", what, fix, *at, "hosts", index)


def images(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Images have a name that can be, with a digest where the site asks for that."""
    docker = site.providers.docker or DockerProvider()
    strict = docker.image_policy == "digest"
    for version in listed(site, endpoints):
        if version.version.image:
            _image(version.version.image, strict, (*version.path, "image"), report)
    for name, host in docker.by_name.items():
        if host.gpu_probe_image:
            at = ("providers", "docker", *(("hosts", name) if docker.hosts else ()), "gpu_probe_image")
            _image(host.gpu_probe_image, strict, at, report)


def _image(image: str, strict: bool, at: tuple[str, ...], report: Report) -> None:
    found = _IMAGE.match(image)
    if found is None:
        what = f'"{shorten(image)}" is not the name of an image'
        report.error("SS193", what, "write REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST", *at)
    elif strict and not found["digest"]:
        what = f'image_policy is digest, and "{shorten(image)}" is named by a tag, which can move'
        report.error("SS193", what, "write NAME@sha256:DIGEST; `docker image inspect` shows it", *at)


def containers(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Containers get no more than a model server needs, and of the host only what it allows."""
    docker = site.providers.docker or DockerProvider()
    for version in listed(site, endpoints):
        allowed = _allowed(docker, [kind for _, kind in version.kinds])
        for what, fix, field in _container_problems(version.version.container, allowed):
            report.error("SS192", f"{version.name}: {what}", fix, *version.path, "container", *field)
        _warn_of_root(version, report)
        _weights(version, allowed, report)


def _warn_of_root(version: Listed, report: Report) -> None:
    """Some images work as root only. What that means is said here, and again in the plan."""
    user = _USER.match(version.version.container.user)
    if user is not None and int(user["user"]) == 0:
        what = f"{version.name} runs as root in its container"
        fix = "remove user if its image works without: containers run as nobody then"
        report.warning("SS196", what, fix, *version.path, "container", "user")


def _weights(version: Listed, allowed: dict[str, DockerHost], report: Report) -> None:
    """Weights of the host are mounted like everything else."""
    scheme, _, path = version.version.source.partition("://")
    if version.in_docker and scheme == "file" and (problem := _source_problem(path, allowed)):
        what = f'{version.name} runs in a container, and its source "{shorten(path)}" {problem}'
        report.error("SS192", what, _source_fix(path), *version.path, "source")


def _allowed(docker: DockerProvider, kinds: Sequence[WorkloadType]) -> dict[str, DockerHost]:
    """The hosts that containers of these workload types may run on, by name; all where there are none."""
    named = {host for kind in kinds if kind.provider == "docker" for host in kind.hosts or docker.by_name}
    return {name: host for name, host in docker.by_name.items() if name in named or not named}


def _container_problems(settings: ContainerSettings, allowed: dict[str, DockerHost]) -> Iterator[Problem]:
    user = _USER.match(settings.user)
    if settings.user and user is None:
        yield f'user "{shorten(settings.user)}" is not numeric', 'write "UID" or "UID:GID"', ("user",)
    if settings.memory is not None and settings.memory < _LEAST_MEMORY:
        yield f"{settings.memory} bytes of memory are too few", "give it 6MiB or more", ("memory",)
    if settings.network and (settings.network in ("host", "none") or not _NAME.match(settings.network)):
        what = f'network "{shorten(settings.network)}" is the host\'s own, or none that the router reaches'
        yield what, "name a network of the host that holds nobody else, or remove it", ("network",)
    targets: set[str] = set()
    for index, mount in enumerate(settings.mounts):
        at = ("mounts", index)
        if problem := _source_problem(mount.source, allowed):
            what = f'the mount of "{shorten(mount.source)}" {problem}'
            yield what, _source_fix(mount.source), (*at, "source")
        if problem := host_paths.target_problem(mount.target):
            yield f'"{shorten(mount.target)}" {problem}', "mount it elsewhere", (*at, "target")
        if mount.target in targets:
            yield f'two mounts are at "{shorten(mount.target)}"', "move one of them", (*at, "target")
        targets.add(mount.target)


def _source_problem(path: str, allowed: dict[str, DockerHost]) -> str:
    if problem := host_paths.source_problem(path):
        return problem
    for name, host in allowed.items():
        if not host_paths.is_absolute(path):
            if _machine(host.url):
                return f"is relative to the bundle's folder, which {shorten(name)} does not have"
        elif not any(host_paths.is_below(path, folder) for folder in host.allowed_paths):
            return f"is in none of the allowed_paths of {shorten(name)}"
    return ""


def _source_fix(path: str) -> str:
    if host_paths.source_problem(path):
        return "give it a folder that holds models or data, and nothing else"
    return "add its folder to allowed_paths of the host, or put it beside the bundle"
