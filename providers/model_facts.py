"""What a model's files say about it, from their heads alone: no weights are read, nothing is kept on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servestate.planner.fit_facts import ModelFacts
from servestate.providers import hub
from servestate.providers.gguf import read_gguf
from servestate.providers.hub import HubModel
from servestate.providers.model_config import facts_of_config, facts_of_gguf
from servestate.providers.model_files import (
    MAX_FILES,
    Folder,
    Repository,
    Span,
    Weights,
    not_a_model,
    read_object,
    unreadable,
)
from servestate.providers.protocol import PermanentError
from servestate.providers.safetensors import read_safetensors
from servestate.providers.secrets import Secret

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_HUB = re.compile(
    r"(?P<organisation>[\w.-]+)/(?P<name>[\w.-]+)(@(?P<revision>[\w./-]+?))?(/(?P<file>[\w./-]+\.gguf))?",
    re.ASCII,
)
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
_SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
_SHOWN = 5  # file names in a message


def read_model_facts(
    source: str,
    base_dir: Path,
    *,
    revision: str = "",
    token: Secret | None = None,
    offline: bool = False,
    environ: Mapping[str, str] = os.environ,
    timeout_s: float = hub.REQUEST_TIMEOUT_S,
) -> ModelFacts:
    """The facts of the model at `source`.

    `file://PATH` is a GGUF file, a safetensors file beside its config.json, or a folder of them; relative
    paths start at `base_dir`. `hf://ORGANISATION/NAME[@REVISION][/FILE.gguf]` is looked up in the hub's cache
    on disk, then, unless `offline` or HF_HUB_OFFLINE says no, asked of the hub, each request bounded by
    `timeout_s`. `revision` counts where the source names none.

    Blocks for as long as the hub takes. Raises PermanentError SS520 for a source that cannot be read, SS521
    for a model that is not there, SS522 where the hub refuses, SS523 for files that are no model, SS524 for
    a model that is not in the cache while offline; TransientError for trouble of the network.
    """
    scheme, _, rest = source.partition("://")
    if scheme == "file" and rest:
        return _read_path(base_dir / rest)
    match = _HUB.fullmatch(rest) if scheme == "hf" else None
    if match is None or ".." in rest.split("/"):
        fix = "write file://PATH or hf://ORGANISATION/NAME[@REVISION][/FILE.gguf]"
        raise PermanentError("SS520", f'source "{source[:200]}" names no model whose size can be read', fix)
    model = HubModel(match["organisation"], match["name"], match["revision"] or revision or "main")
    return _read_hub(model, match["file"] or "", environ, token, offline, timeout_s)


def _read_path(path: Path) -> ModelFacts:
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise unreadable(path, error) from error
    if is_folder:
        return _read(Folder(path), "")
    folder = Folder(path.parent)
    if path.suffix == ".safetensors" and folder.open(path.name) is not None:
        return facts_of_config(_config(folder), read_safetensors([_opened(folder, path.name)]), path.name)
    return _read_gguf(folder, path.name)


def _read_hub(
    model: HubModel,
    file: str,
    environ: Mapping[str, str],
    token: Secret | None,
    offline: bool,
    timeout_s: float,
) -> ModelFacts:
    """The cache first, where it holds enough; a download that was broken off leaves it with half a model."""
    snapshot = hub.cached(model, environ)
    if snapshot is not None and _is_complete(snapshot, file):
        return _read(snapshot, file)
    if offline or hub.is_offline(environ):
        what = f"hf://{model}@{model.revision} is not in the cache, and the hub may not be asked"
        raise PermanentError("SS524", what, "download it first, or allow the network")
    with hub.open_hub(model, environ, token, timeout_s) as repository:
        return _read(repository, file)


def _is_complete(snapshot: Folder, file: str) -> bool:
    if file:
        return snapshot.open(file) is not None
    names = set(snapshot.names())
    return any(name.endswith(".gguf") for name in names) or (
        CONFIG in names and bool(names & {INDEX, SINGLE})
    )


def _read(repository: Repository, file: str) -> ModelFacts:
    """The model in `repository`: the GGUF `file`, else config and safetensors, else its only GGUF file."""
    if file:
        return _read_gguf(repository, file)
    if (config := repository.open(CONFIG)) is not None:
        weights = _weights(repository)
        if weights is not None:
            return facts_of_config(read_object(config), weights, config.name)
    return _read_gguf(repository, _only_gguf(repository))


def _config(repository: Repository) -> dict[str, Any]:
    return read_object(_opened(repository, CONFIG))


def _opened(repository: Repository, name: str) -> Span:
    found = repository.open(name)
    if found is None:
        fix = "check the source; safetensors need the config.json beside them"
        raise PermanentError("SS521", f"{repository.name} has no file {name}", fix)
    return found


def _weights(repository: Repository) -> Weights | None:
    """Of the shards that the index names, or of the one file; None where there is neither."""
    if (index := repository.open(INDEX)) is not None:
        return _sharded(repository, read_object(index), index.name)
    if (single := repository.open(SINGLE)) is not None:
        return read_safetensors([single])
    return None


def _sharded(repository: Repository, index: dict[str, Any], name: str) -> Weights:
    """Summed from the headers where they are at hand; the index's own total spares a hundred requests."""
    total = _total(index)
    shards = _shards(index, name)
    if repository.is_local and all(repository.open(shard) is not None for shard in shards):
        total = None
    if total is not None:
        return total
    return read_safetensors(_opened(repository, shard) for shard in shards)


def _total(index: dict[str, Any]) -> Weights | None:
    match index.get("metadata"):
        case {"total_size": int(size) | float(size), **rest} if 0 < size < 1 << 50:
            parameters = rest.get("total_parameters")
            return Weights(int(size), parameters if isinstance(parameters, int) and parameters > 0 else 0, "")
        case _:
            return None


def _shards(index: dict[str, Any], name: str) -> list[str]:
    places = index.get("weight_map")
    files = set(map(str, places.values())) if isinstance(places, dict) else set()
    if not files or len(files) > MAX_FILES:
        raise not_a_model(name, f"it names {len(files):,} files")
    for file in files:
        if not _SHARD.fullmatch(file):
            raise not_a_model(name, f"it names the file {file[:80]!r}")
    return sorted(files)


def _only_gguf(repository: Repository) -> str:
    """The GGUF file, or the first part of it. Several are several quantizations: a person has to choose."""
    names = [name for name in repository.names() if name.endswith(".gguf")]
    models = [name for name in names if (part := _PART.fullmatch(name)) is None or part["part"] == "00001"]
    if len(models) == 1:
        return models[0]
    if not models:
        what = f"{repository.name} holds neither {CONFIG} with safetensors nor a GGUF file"
        raise PermanentError("SS523", what, "point the source at a model")
    shown = ", ".join(models[:_SHOWN]) + (", …" if len(models) > _SHOWN else "")
    what = f"{repository.name} holds {len(models)} GGUF files: {shown}"
    raise PermanentError("SS523", what, "name one of them: …/FILE.gguf")


def _read_gguf(repository: Repository, name: str) -> ModelFacts:
    first = _opened(repository, name)
    gguf = read_gguf(first)
    weights = gguf.weights
    if (part := _PART.fullmatch(name)) is not None and int(part["parts"]) > 1:
        count = min(int(part["parts"]), MAX_FILES)
        others = (f"{part['stem']}-{number:05}-of-{part['parts']}.gguf" for number in range(2, count + 1))
        for other in others:
            more = read_gguf(_opened(repository, other)).weights
            weights = Weights(weights.bytes + more.bytes, weights.parameters + more.parameters, weights.dtype)
    return facts_of_gguf(gguf, weights, first.name)
