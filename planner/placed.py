"""Where a launch goes and what it waits for: what `placement` decides and `rollout` turns into edges."""

from __future__ import annotations

from dataclasses import dataclass

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import HERE, Placement


@dataclass(frozen=True, slots=True)
class Placed:
    """A launch's place. It starts once `needs` (ids of stop steps) are done, and `follows` are the loads on
    the same GPUs that it waits out. `vacates` are the instances of its endpoint that stop before any launch
    of it. `remarks` are lines for people: what fits how, and what was chosen why."""

    placement: Placement = HERE
    vacates: tuple[InstanceAddress, ...] = ()
    needs: tuple[str, ...] = ()
    follows: tuple[InstanceAddress, ...] = ()
    remarks: tuple[str, ...] = ()


UNPLACED = Placed()
"""Of what is not launched."""
