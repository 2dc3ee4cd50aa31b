"""Secrets that requests bring along as `K_plaintext`: kept in a file of this user's alone, and referred to
from then on. No reply, state, plan or log ever holds one, nor the reference to it."""

from __future__ import annotations

import json
import os
import re
import secrets as random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from servestate.providers.protocol import PermanentError
from servestate.providers.secrets import Secret, Secrets

SCOPE = "servestate-api"
"""The scope of these secrets; nobody may refer to it by hand."""

_SUFFIX = "_plaintext"
_KEPT = re.compile(r"\{\{\s*secrets/" + re.escape(SCOPE) + "/", re.IGNORECASE)


class KeptSecrets:
    """A secrets backend: what requests brought, from the file at `path`; all else from `others`."""

    def __init__(self, path: Path, others: Secrets) -> None:
        self._path = path
        self._others = others

    def get(self, scope: str, key: str) -> Secret:
        """See `Secrets.get`. Raises PermanentError SS517 for one that is not kept any more."""
        if scope != SCOPE:
            return self._others.get(scope, key)
        value = read(self._path).get(key)
        if value is None:
            what = "a secret that came with a request is not kept here any more"
            raise PermanentError("SS517", what, "send the request again, with the secret")
        return Secret(value)


def read(path: Path) -> dict[str, str]:
    """All kept secrets, by key. Raises PermanentError SS517 where the file cannot be read."""
    try:
        found: dict[str, str] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        what = f"the secrets that came with requests cannot be read: {path}: {error}"
        raise PermanentError("SS517", what, "run as the user who serves") from None
    return found


_WRITING = threading.Lock()


def taken_out(body: Any) -> tuple[Any, dict[str, str]]:
    """`body` with every `K_plaintext` replaced by a reference `K`, and the secrets that these refer to once
    they are kept. Raises ValueError where both are given."""
    found: dict[str, str] = {}

    def name(value: str) -> str:
        key = random.token_hex(16)
        found[key] = value
        return f"{{{{secrets/{SCOPE}/{key}}}}}"

    return _replaced(body, name), found


def keep(path: Path, secrets: Mapping[str, str]) -> None:
    """Keep these secrets from now on. Raises OSError."""
    if secrets:
        with _WRITING:
            _write(path, {**read(path), **secrets})


def _replaced(value: Any, name: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_replaced(item, name) for item in value]
    if not isinstance(value, Mapping):
        return value
    made: dict[str, Any] = {}
    for key, below in value.items():
        plain = key.removesuffix(_SUFFIX)
        if plain == key or not isinstance(below, str) or not below:
            made[key] = _replaced(below, name)
        elif value.get(plain):
            raise ValueError(f"give {plain} or {key}, not both")
        else:
            made[plain] = name(below)
    return made


def forget(path: Path, used: str) -> None:
    """Drop the secrets that `used`, all the text that may refer to them, does not. Raises OSError."""
    with _WRITING:
        kept = read(path)
        left = {key: value for key, value in kept.items() if key in used}
        if left != kept:
            _write(path, left)


def _write(path: Path, kept: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{random.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(kept, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def refers(value: Any) -> bool:
    """Whether any text in `value` refers to the scope of kept secrets."""
    if isinstance(value, str):
        return bool(_KEPT.search(value))
    if isinstance(value, Mapping):
        return any(refers(below) for below in value.values())
    return isinstance(value, list) and any(refers(below) for below in value)


def without_kept(value: Any) -> Any:
    """`value` without references to kept secrets: of those a reply shows neither form."""
    if isinstance(value, Mapping):
        left = {k: without_kept(v) for k, v in value.items() if not (isinstance(v, str) and refers(v))}
        return {k: v for k, v in left.items() if v != {} or value[k] == {}}
    if isinstance(value, list):
        return [without_kept(item) for item in value]
    return value
