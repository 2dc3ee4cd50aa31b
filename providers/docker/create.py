"""What a container is created with: spec, marks, command and facts in, the Engine API's JSON out. Pure.

The defaults are as little as possible, and a spec can reach only what is named here: there is no way to ask
for privileges, devices, capabilities, other namespaces or a log driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servestate.planner.launch import Container, Mount, Placement
from servestate.providers.docker import entry, marks
from servestate.providers.engines.engine import CACHE_ROOT, ContainerCommand
from servestate.providers.labels import Worn
from servestate.providers.protocol import PermanentError

MEMORY_SHARE = 0.9
"""Of the host's memory, where no limit is asked for: an engine that leaks ends before the host does."""

TMP_BYTES = 2 << 30
RUN_BYTES = 16 << 20

_LOG = {"Type": "local", "Config": {"max-size": "10m", "max-file": "3"}}
_ROOT = ("", "root", "0")
_VISIBLE_GPUS = "NVIDIA_VISIBLE_DEVICES"
HF_TOKEN = "HF_TOKEN"  # noqa: S105  # a name
HF_TOKEN_FILE = "hf-token"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Image:
    """What an image says of itself. `reference` names it without its tag: by digest, or by id."""

    reference: str
    id: str
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ground:
    """What a container stands on: its image, the host's memory in bytes, the address of the host on which its
    port is published, the name of the cache volume, and the Docker sockets that no container may be given."""

    image: Image
    memory: int
    address: str
    cache: str
    sockets: tuple[str, ...] = ()


def config(
    container: Container,
    worn: Worn,
    command: ContainerCommand,
    env: Mapping[str, str],
    handover: entry.Handover,
    ground: Ground,
) -> dict[str, Any]:
    """The body of a create request. `env` holds the variables without a secret, over the engine's own;
    `handover` says only which variables and files will come over standard input. Raises PermanentError SS532
    for what no container is given."""
    port = f"{worn.port}/tcp"
    return {
        "Image": ground.image.reference,
        "User": user(container, command, ground.image),
        "Env": _environment(worn.marks.placement, command, env, handover),
        "Labels": marks.to_labels(worn),
        "ExposedPorts": {port: {}},
        **_program(command, handover, ground.image),
        "HostConfig": {
            **_limits(container, command, ground.memory),
            **_network(container.network),
            "PortBindings": {port: [{"HostIp": ground.address, "HostPort": ""}]},
            "Mounts": _mounts(container, command, ground),
            "ReadonlyRootfs": container.read_only,
            "Tmpfs": _tmpfs(user(container, command, ground.image), handover),
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],  # and Docker's default seccomp profile
            "Init": True,  # reaps what workers leave behind, and passes SIGTERM on
            # The only supervisor is servestate: Docker would start it again under another identity.
            "RestartPolicy": {"Name": "no"},
            "DeviceRequests": _gpus(worn.marks.placement),
            "LogConfig": _LOG,
        },
    }


def user(container: Container, command: ContainerCommand, image: Image) -> str:
    """The asked user, else the image's own unless that is root, else the engine's unprivileged one."""
    of_image = "" if image.user.partition(":")[0] in _ROOT else image.user
    return container.user or of_image or command.user


def owner(user: str) -> tuple[int, int] | None:
    """The numeric user and group, None where only the image knows the number."""
    uid, _, gid = user.partition(":")
    if not uid.isdecimal() or not (gid or uid).isdecimal():
        return None
    return int(uid), int(gid or uid)


def _environment(
    placement: Placement, command: ContainerCommand, env: Mapping[str, str], handover: entry.Handover
) -> list[str]:
    # NVIDIA's runtime gives every GPU to a container whose image says "all", also where none was requested.
    visible = {_VISIBLE_GPUS: ",".join(placement.gpus) or "void"}
    token = {"HF_TOKEN_PATH": f"{entry.FOLDER}/{HF_TOKEN_FILE}"}
    held = token if any(name == HF_TOKEN_FILE for name, _ in handover.files) else {}
    merged = {**dict(command.env), **env, **held, **visible}
    return [f"{name}={value}" for name, value in sorted(merged.items())]


def _program(command: ContainerCommand, handover: entry.Handover, image: Image) -> dict[str, Any]:
    """Entrypoint and command. The image's own are left to Docker unless the shell goes before them."""
    if not handover:
        return {"Cmd": list(command.args)} if command.args else {}
    program = [*image.entrypoint, *(command.args or image.command)]
    stdin = {"OpenStdin": True, "StdinOnce": True, "AttachStdin": True}
    return {"Entrypoint": entry.entrypoint(), "Cmd": program, **stdin}


def _tmpfs(user: str, handover: entry.Handover) -> dict[str, str]:
    """File systems in memory, which count as the container's. runc gives one the mode of the image's folder
    of that name, so the user has to own /run, and secrets go into a folder that no image has."""
    known = owner(user)
    owned = f",uid={known[0]},gid={known[1]}" if known else ""
    small = f"rw,nosuid,nodev,noexec,size={RUN_BYTES},mode=1777{owned}"
    secret = {entry.FOLDER: small} if handover else {}
    # Programs may be run in /tmp: engines compile kernels there and load what they compiled.
    large = f"rw,nosuid,nodev,exec,size={TMP_BYTES},mode=1777"
    return {"/tmp": large, "/run": small, **secret}  # noqa: S108  # the container's


def _limits(container: Container, command: ContainerCommand, host_memory: int) -> dict[str, int]:
    memory = container.memory or int(host_memory * MEMORY_SHARE)
    limits = {
        "Memory": memory,
        "MemorySwap": memory,  # memory and swap together: weights in swap serve nobody
        "NanoCpus": round(container.cpus * 1e9),
        "PidsLimit": container.pids,
    }
    return limits | ({"ShmSize": container.shm} if container.shm else {})


def _network(network: str) -> dict[str, str]:
    if network in ("host", "none") or network.startswith("container:"):
        raise PermanentError(
            "SS532",
            f'no port of a container can be published on the network "{network}"',
            "write bridge, or the name of a network of your own",
        )
    return {"NetworkMode": network}


def _mounts(container: Container, command: ContainerCommand, ground: Ground) -> list[dict[str, Any]]:
    binds = [_bind(mount, ground.sockets) for mount in (*command.mounts, *container.mounts)]
    # Never copied from the image: its files there are the image's owner's, not this container's user's.
    empty = {"VolumeOptions": {"NoCopy": True}}
    cache = {"Type": "volume", "Source": ground.cache, "Target": CACHE_ROOT, **empty}
    return [*binds, *([cache] if command.caches else [])]


def _bind(mount: Mount, sockets: tuple[str, ...]) -> dict[str, Any]:
    """A mount of the type that refuses a source that is not there; the older one would create it, as root."""
    within = mount.source.rstrip("/") + "/"
    if any(socket == mount.source or socket.startswith(within) for socket in sockets):
        raise PermanentError(
            "SS532",
            f"{mount.source} holds the Docker socket, which is as good as root on the host",
            "mount a folder without it",
        )
    read_only = {"ReadOnly": mount.read_only, "BindOptions": {"Propagation": "rprivate"}}
    return {"Type": "bind", "Source": mount.source, "Target": mount.target, **read_only}


def _gpus(placement: Placement) -> list[dict[str, Any]]:
    if not placement.gpus:
        return []
    return [{"Driver": "nvidia", "DeviceIDs": list(placement.gpus), "Capabilities": [["gpu"]]}]
