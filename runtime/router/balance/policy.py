"""When replicas are probed, taken out of use and tried again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When a replica is probed, ejected and tried again. Times in seconds; see `health` for what they
    bound. `interval_s` and `timeout_s` are those of probes."""

    interval_s: float = 5.0
    timeout_s: float = 2.0
    errors: int = 5
    ejection_s: float = 10.0
    max_ejection_s: float = 300.0
    window_s: float = 30.0
    window_requests: int = 20
    error_share: float = 0.5
    trial_s: float = 120.0
