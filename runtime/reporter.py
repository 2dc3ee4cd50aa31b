"""What apply tells while it works. The base does nothing; the core never prints."""

from __future__ import annotations

from servestate.planner.steps import Node


class Reporter:
    """Receives progress; every method may be left out. Elapsed times are in seconds."""

    def notice(self, text: str) -> None:
        """Something a person should know that is no step: a broken lock, a recovery."""

    def step_started(self, node: Node) -> None:
        """The step has begun."""

    def step_progress(self, node: Node, text: str) -> None:
        """What the step is waiting for."""

    def step_done(self, node: Node, elapsed_s: float) -> None:
        """The step has succeeded."""

    def step_failed(self, node: Node, why: str, elapsed_s: float) -> None:
        """The step has failed; `why` may hold several lines."""

    def step_skipped(self, node: Node, because: str) -> None:
        """The step was not started: what it needs failed, or apply was interrupted."""

    def close(self) -> None:
        """Apply is over."""
