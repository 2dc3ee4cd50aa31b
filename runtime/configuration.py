"""The YAML files of a folder, or one file, as documents for the planner."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.bundle import Desired, Document, load

_SUFFIXES = (".yaml", ".yml")
_INCLUDE = re.compile(r"^include\s*:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says of the configuration."""

    path: Path
    target: str | None
    variables: Mapping[str, str]


def root_of(path: Path) -> Path:
    """The bundle's folder: relative paths in the configuration start there."""
    return path if path.is_dir() else path.parent


def load_configuration(options: Options) -> Desired:
    """Read and check everything. Raises InvalidInput with all findings."""
    documents = list(_documents(options.path))
    if not documents:
        what = f"no configuration: {options.path} holds no .yaml or .yml file"
        raise InvalidInput(
            [Diagnostic("SS100", what, "name a file or folder with -f, or write endpoints.yaml")]
        )
    return load(documents, target=options.target, variables=options.variables, environ=os.environ)


def has_configuration(path: Path) -> bool:
    """Whether there is any file to load. Raises InvalidInput where `path` itself is missing: the workspace of
    the folder above is not the one that was asked for."""
    if not path.exists():
        raise InvalidInput([_missing(path)])
    return not path.is_dir() or any(_yaml_files(path))


def documents_of(path: Path) -> list[Document]:
    """The files of a configuration, included ones too, as they are. Raises InvalidInput."""
    return list(_documents(path))


def configuration_files(path: Path) -> list[Path]:
    """The files that `path` itself names: those of a folder, or the one. Raises InvalidInput."""
    return list(_yaml_files(path)) if path.is_dir() else [path]


def included_files(path: Path) -> list[Path]:
    """The files that those include. Raises InvalidInput."""
    root = root_of(path)
    documents = (_read(file, root) for file in configuration_files(path))
    return [included for document in documents for included in _included(document, root)]


def _documents(path: Path) -> Iterator[Document]:
    root = root_of(path)
    files = [path] if not path.is_dir() else list(_yaml_files(path))
    seen: set[Path] = set()
    for file in files:
        document = _read(file, root)
        seen.add(file.resolve())
        yield document
        for included in _included(document, root):
            if included.resolve() not in seen:
                seen.add(included.resolve())
                yield _read(included, root)


def _yaml_files(folder: Path) -> Iterator[Path]:
    try:
        found = [p for p in folder.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith(".")]
    except OSError as error:
        fix = "name a folder that this user may read with -f"
        raise InvalidInput([Diagnostic("SS100", f"cannot read {folder}: {error}", fix)]) from error
    yield from sorted(p for p in found if p.is_file())


def _read(file: Path, root: Path) -> Document:
    try:
        name = str(file.relative_to(root))
        return Document(name, file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput([_missing(file)]) from None
    except (OSError, UnicodeDecodeError) as error:
        fix = "make it readable UTF-8 text"
        raise InvalidInput([Diagnostic("SS100", f"cannot read {file}: {error}", fix)]) from error


def _missing(path: Path) -> Diagnostic:
    fix = "name an existing file or folder with -f"
    return Diagnostic("SS100", f"no such file or folder: {path}", fix)


def _included(document: Document, root: Path) -> Iterator[Path]:
    """The files that a bundle's `include` patterns name. A malformed list is reported by the loader, which
    sees the same text with its places."""
    if not _INCLUDE.search(document.text):
        return
    import yaml

    try:
        patterns = yaml.load(document.text, Loader=yaml.CSafeLoader).get("include")
    except (yaml.YAMLError, AttributeError):
        return
    for pattern in patterns if isinstance(patterns, list) else []:
        if isinstance(pattern, str) and not Path(pattern).is_absolute() and ".." not in Path(pattern).parts:
            yield from sorted(root.glob(pattern))
