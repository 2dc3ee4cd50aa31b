"""The catalogue of foundation models that comes with servestate: a file beside this one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from servestate.planner.spec.site import Optimization
from servestate.planner.throughput import Catalogue


@cache
def foundation_models() -> Catalogue:
    """What is known of each, see `Catalogue`."""
    import yaml

    text = Path(__file__).with_name("foundation_models.yaml").read_text("utf-8")
    found = yaml.load(text, Loader=yaml.CSafeLoader)
    return {pattern: Optimization.model_validate(known) for pattern, known in found.items()}
