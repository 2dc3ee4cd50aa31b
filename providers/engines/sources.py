"""Where weights are, by a spec's `source`. Pure: what a command needs says what has to be there."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

from servestate.planner.launch import LaunchSpec, Mount
from servestate.providers.engines.engine import MODEL_ROOT, NeedsFile
from servestate.providers.protocol import PermanentError

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB = re.compile(rf"(?P<name>(?:{_PART}/)?{_PART})(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of the Hugging Face hub: ORG/NAME, and the branch, tag or commit; "" for the newest."""

    name: str
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this host that holds a model."""

    path: Path

    @property
    def inside(self) -> str:
        """Where a container sees it."""
        return f"{MODEL_ROOT}/{self.path.name}"

    @property
    def mount(self) -> Mount:
        """What makes a container see it."""
        return Mount(str(self.path), self.inside)

    def needs(self, name: str, kind: str) -> NeedsFile:
        """That the folder holds the file `name`, by which a model of this kind is known."""
        fix = f"point `source` at a folder that holds {name}; relative paths start at the bundle's folder"
        return NeedsFile(self.path / name, b"", kind, fix)


def hub_or_folder(spec: LaunchSpec, base_dir: Path) -> HubModel | Folder:
    """What `hf://ORG/NAME[@REVISION]` or `file://FOLDER` names. Raises PermanentError SS502 for all else."""
    if folder := local_folder(spec, base_dir):
        return folder
    scheme, _, rest = spec.source.partition("://")
    found = _HUB.match(rest) if scheme == "hf" else None
    if found is None:
        raise unknown_source(spec, "hf://ORG/NAME, hf://ORG/NAME@REVISION or file://FOLDER")
    return HubModel(found["name"], found["revision"] or "")


def local_folder(spec: LaunchSpec, base_dir: Path) -> Folder | None:
    """The folder of a `file://` source, None for any other source."""
    scheme, separator, rest = spec.source.partition("://")
    if scheme != "file" or not separator or not rest:
        return None
    # Without "." and "..", so that the last part is the folder's own name.
    return Folder(Path(posixpath.normpath(base_dir / rest)))


def unknown_source(spec: LaunchSpec, forms: str) -> PermanentError:
    """The error for a source that the spec's engine cannot load."""
    what = f'engine {spec.engine} cannot load "{spec.source}" for model "{spec.model}"'
    return PermanentError("SS502", what, f"write the source as {forms}")
