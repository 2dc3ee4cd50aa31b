"""All that is said of the package stands in pyproject.toml, but for one thing that cannot: whether the
router's way of a request is compiled.

With SERVESTATE_COMPILE=1 it is, by mypyc and from the same source, which takes a C compiler and mypy (`make
compile` does it in place). Without, nothing is.
"""

from __future__ import annotations

import os

from setuptools import setup

COMPILED = """
access client dispatch parties proxy routes routing mirror
http.chunked http.errors http.headers http.heads http.http1 http.sse http.upstream
messages.body messages.tokens
quota.memory quota.rates quota.windows
balance.health balance.pick balance.replicas
guards.judging
records.access_log records.books records.counters records.ids records.measures records.metrics
records.record records.writer
"""
"""Modules of `servestate.runtime.router`: those that a request passes, but for the ones whose values are sent
to workers, which compiled they could not be."""


def extensions() -> list[object]:
    """What is compiled."""
    if os.environ.get("SERVESTATE_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    sources = [f".typing/servestate/runtime/router/{name.replace('.', '/')}.py" for name in COMPILED.split()]
    return list(mypycify(sources, opt_level="3", debug_level="0", group_name="servestate_router"))


setup(ext_modules=extensions())
