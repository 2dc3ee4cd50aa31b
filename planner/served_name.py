"""The name that an engine answers to, which the router writes into request bodies."""

from __future__ import annotations

import posixpath

MODEL_FOLDER = "/models"
"""Where a container finds the folders of `file://` sources, by their own names."""


def served_name(engine: str, name: str, source: str, in_container: bool) -> str:
    """The name for a model called `name` in the catalogue. Engines take any name, except transformers: it
    answers to what it loads and to nothing else (checked with 5.23), so its name follows from the source.

    Relative folders start with "./", which no model of the hub does; the process runs in the bundle's folder.
    """
    scheme, _, rest = source.partition("://")
    if engine != "transformers" or scheme not in ("hf", "file"):
        return name
    if scheme == "hf":
        return rest
    folder = posixpath.normpath(rest)
    if in_container:
        return f"{MODEL_FOLDER}/{posixpath.basename(folder)}"
    return folder if folder.startswith("/") else f"./{folder}"
