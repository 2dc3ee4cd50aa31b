"""Typed options as arguments, and the interpreter that they are for. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from servestate.planner.launch import LaunchSpec, Scalar
from servestate.planner.spec.engine_options import flag_of
from servestate.providers.engines.engine import NeedsModule


def flags(options: Iterable[tuple[str, Scalar]]) -> tuple[str, ...]:
    """`--name value` each; a boolean is `--name` or `--no-name`."""
    found: list[str] = []
    for name, value in options:
        flag = flag_of(name)
        if isinstance(value, bool):
            found.append(flag if value else f"--no-{flag[2:]}")
        else:
            found += [flag, str(value)]
    return tuple(found)


def interpreter(spec: LaunchSpec, base_dir: Path) -> str:
    """The Python that has the engine: the spec's, relative to `base_dir`, else servestate's own."""
    if "/" in spec.python:
        return str(base_dir / spec.python)
    return spec.python or sys.executable


def needs_module(spec: LaunchSpec, module: str, fix: str) -> tuple[NeedsModule, ...]:
    """That `module` is installed. Not known of another interpreter; there the engine's log will tell."""
    return () if spec.python else (NeedsModule(module, fix),)
