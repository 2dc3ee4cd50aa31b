"""All that is said of the package stands in pyproject.toml, but for one thing that cannot: whether the
router's way of a request is compiled.

With SERVESTATE_COMPILE=1 it is, by mypyc and from the same source, which takes a C compiler and mypy (`make
compile` does it in place). Without, nothing is.
"""

from __future__ import annotations

import os

from setuptools import setup

COMPILED = """
access access_log body books chunked client counters dispatch errors headers heads http1 ids judging memory
metrics mirror pick proxy rates record replicas routes routing sse tokens upstream windows
"""
"""Modules of `servestate.runtime.router`: those that a request passes, but for the ones whose values are sent
to workers, which compiled they could not be."""


def extensions() -> list[object]:
    """What is compiled."""
    if os.environ.get("SERVESTATE_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    sources = [f".typing/servestate/runtime/router/{name}.py" for name in COMPILED.split()]
    return list(mypycify(sources, opt_level="3", debug_level="0", group_name="servestate_router"))


setup(ext_modules=extensions())
