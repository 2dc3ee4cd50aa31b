"""All that is said of the package stands in pyproject.toml, but for one thing that cannot: whether the
router's way of a request is compiled.

With SERVESTATE_COMPILE=1 it is: by mypyc, and where numbers in shared memory are counted by Cython, from the
same source; only for the search of bytes there is a source in C. That takes Linux, a C compiler, mypy and
Cython (`make compile` does it in place). Without, nothing is.
"""

from __future__ import annotations

import os

from setuptools import Extension, setup

COMPILED = """
access client dispatch mirror parties proxy relay routes routing upload
http.chunked http.errors http.headers http.heads http.http1 http.sse http.upstream
messages.body messages.passage messages.tokens
quota.memory quota.rates
balance.health balance.pick balance.prober balance.replicas
guards.judging
records.access_log records.books records.counters records.ids records.measures records.metrics
records.record records.writer
"""
"""Modules of `servestate.runtime.router`: those that a request passes, but for the ones whose values are sent
to workers, which compiled they could not be. What they call of other modules for each request they name once
more, as their own and Final: compiled, it would be looked up each time."""
BY_CYTHON = "quota.windows"
IN_C = "_scan"


def extensions() -> list[Extension]:
    """What is compiled."""
    if os.environ.get("SERVESTATE_COMPILE") != "1":
        return []
    from Cython.Build import cythonize
    from mypyc.build import mypycify

    made = mypycify(
        [source(name) for name in COMPILED.split()],
        opt_level="3",
        debug_level="0",
        group_name="servestate_router",
    )
    made += cythonize(
        Extension(f"servestate.runtime.router.{BY_CYTHON}", [source(BY_CYTHON)]),
        include_path=[".typing"],  # where it finds what stands beside the module
        build_dir="build",
        quiet=True,
        # Places are those of rows, which are never outside, and never below 0.
        compiler_directives={
            "language_level": 3,
            "annotation_typing": False,
            "infer_types": True,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
        },
    )
    return [*made, Extension(f"servestate.runtime.router.{IN_C}", [source(IN_C, "c")])]


def source(name: str, suffix: str = "py") -> str:
    """Where a module of the router is written."""
    return f".typing/servestate/runtime/router/{name.replace('.', '/')}.{suffix}"


setup(ext_modules=extensions())
