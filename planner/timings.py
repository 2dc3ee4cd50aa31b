"""How a change of an entity is carried out: waits and order. None of it restarts anything when it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from servestate.planner.launch import DRAIN_TIMEOUT_S, STOP_GRACE_S
from servestate.planner.spec.site import ModelVersion, Site


@dataclass(frozen=True, slots=True)
class Timings:
    """Settled timings of one entity, in seconds. `recreate` stops the old instance before the new one starts;
    `surge` forbids that, also where nothing else fits; with neither, the plan chooses."""

    ready_timeout_s: float = 300.0
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    stop_grace_s: float = STOP_GRACE_S
    recreate: bool = False
    surge: bool = False


_DEFAULT = Timings()
_READY_TIMEOUT_S = {"vllm": 1800.0, "transformers": 1800.0, "mlflow": 600.0}
"""Engines that download and compile before they answer, and so get more time unless told otherwise."""

_DURATIONS = ("ready_timeout_s", "drain_timeout_s", "stop_grace_s")


def timings(site: Site, endpoint: str, entity: str, version: ModelVersion | None = None) -> Timings:
    """What the entity's address says, else its endpoint's, else its model version's, else the defaults."""
    endpoint_wide, own = site.overrides.get(endpoint), site.overrides.get(f"{endpoint}/{entity}")
    layers = [layer for layer in (version, endpoint_wide, own) if layer is not None]
    if not layers:
        return _DEFAULT
    found: dict[str, Any] = {}
    if version is not None and version.engine in _READY_TIMEOUT_S:
        found["ready_timeout_s"] = _READY_TIMEOUT_S[version.engine]
    for layer in layers:
        found |= {name: value for name in _DURATIONS if (value := getattr(layer, name)) is not None}
    for override in (endpoint_wide, own):
        if override is not None and override.strategy is not None:
            found["recreate"] = override.strategy == "recreate"
            found["surge"] = override.strategy == "surge"
    return Timings(**found)


def extra_args(site: Site, endpoint: str, entity: str) -> tuple[str, ...]:
    """Engine arguments that overrides append: the endpoint's first, then the entity's."""
    layers = (site.overrides.get(endpoint), site.overrides.get(f"{endpoint}/{entity}"))
    return tuple(arg for layer in layers if layer is not None for arg in layer.args)


def extra_hosts(site: Site, endpoint: str, entity: str) -> tuple[str, ...]:
    """The hosts that an override restricts the entity to: its own, else its endpoint's, () for none."""
    layers = (site.overrides.get(f"{endpoint}/{entity}"), site.overrides.get(endpoint))
    return next((layer.hosts for layer in layers if layer is not None and layer.hosts), ())
