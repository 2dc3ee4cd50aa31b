"""How apply's progress is shown: live on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from servestate.planner.handles import shown
from servestate.planner.steps import (
    AwaitReady,
    Drain,
    Forget,
    Launch,
    Node,
    PublishTable,
    Pull,
    Register,
    RewriteTable,
    Step,
    Stop,
    Withdraw,
)
from servestate.runtime.json_lines import line, version_line
from servestate.runtime.reporter import Reporter

if TYPE_CHECKING:
    from rich.table import Table

STILL_EVERY_S = 10.0
"""How often a step that goes on is mentioned in plain output."""


def reporter_for(arguments: argparse.Namespace) -> Reporter:
    """The reporter that suits the output."""
    if arguments.json:
        return JsonReporter(announce=arguments.plan is not None)
    colourless = arguments.no_color or arguments.color == "never"
    return LiveReporter(colourless) if sys.stdout.isatty() else TextReporter()


def subject(step: Step) -> str:
    """What a step is about, as the plan calls it."""
    match step:
        case PublishTable(record):
            return record.name
        case Withdraw(endpoint):
            return str(endpoint)
        case RewriteTable():
            return "routing table"
        case Pull():
            return step.image
        case Forget(address):
            return str(address).partition("@")[0]
        case _:
            return str(step.address.of)


# step -> what it does, and what it has done
_WORDS: dict[type, tuple[str, str]] = {
    Pull: ("Pulling", "Pull complete"),
    Launch: ("Creating", "Launched"),
    AwaitReady: ("Waiting until ready", "Creation complete"),
    Register: ("Creating", "Creation complete"),
    PublishTable: ("Modifying", "Modifications complete"),
    Withdraw: ("Destroying", "Routes withdrawn"),
    RewriteTable: ("Modifying", "Modifications complete"),
    Drain: ("Draining", "Drained"),
    Stop: ("Destroying", "Destruction complete"),
    Forget: ("Destroying", "Destruction complete"),
}


def words(step: Step) -> tuple[str, str]:
    """What the step does and has done; the first publication of an endpoint is its creation."""
    if isinstance(step, PublishTable) and step.record.config_version == 1:
        return "Creating", "Creation complete"
    return _WORDS[type(step)]


def identity_of(step: Step) -> str:
    """` [id=…]` where the step has an object with one."""
    match step:
        case Pull(_, host, _, digest):
            return f" [id={digest[:19]} on {host}]"
        case Stop(_, _, handle, _) if handle:
            return f" [id={shown(handle)}]"
        case Launch(address) | AwaitReady(address) | Register(address) | Drain(address):
            return f" [id={address}]"
        case _:
            return ""


def _print_if_possible(text: str) -> None:
    """What cannot be printed (a closed pipe, a full disk) must not stop an apply half-way. It stays in the
    buffer, so the last flush of the verb tells of it."""
    with suppress(OSError):
        print(text, flush=True)


class TextReporter(Reporter):
    """Plain lines, for logs."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._mentioned: dict[str, float] = {}

    def notice(self, text: str) -> None:
        """See `Reporter`."""
        self._print(f"servestate: {text}")

    def step_started(self, node: Node) -> None:
        """See `Reporter`."""
        now = time.monotonic()
        self._began.setdefault(subject(node.step), now)
        self._mentioned[node.id] = now
        self._print(f"{subject(node.step)}: {words(node.step)[0]}...{identity_of(node.step)}")

    def step_progress(self, node: Node, text: str) -> None:
        """See `Reporter`."""
        now = time.monotonic()
        if now - self._mentioned[node.id] < STILL_EVERY_S:
            return
        self._mentioned[node.id] = now
        elapsed = int(now - self._began[subject(node.step)])
        doing = words(node.step)[0].lower()
        self._print(f"{subject(node.step)}: Still {doing}... [{elapsed}s elapsed]")
        if text:
            self._print(f"    {text}")

    def step_done(self, node: Node, elapsed_s: float) -> None:
        """See `Reporter`."""
        self._print(
            f"{subject(node.step)}: {words(node.step)[1]} after {elapsed_s:.0f}s{identity_of(node.step)}"
        )

    def step_failed(self, node: Node, why: str, elapsed_s: float) -> None:
        """See `Reporter`."""
        first = why.splitlines()[0] if why else "failed"
        self._print(f"{subject(node.step)}: Failed after {elapsed_s:.0f}s: {first}")

    def step_skipped(self, node: Node, because: str) -> None:
        """See `Reporter`."""
        self._print(f"{subject(node.step)}: {words(node.step)[0]} skipped: {because}")

    def _print(self, text: str) -> None:
        _print_if_possible(text)


class JsonReporter(Reporter):
    """One object per line. `announce` prints the version line, where no plan was printed before."""

    def __init__(self, announce: bool) -> None:
        self._began: dict[str, float] = {}
        if announce:
            self._print(version_line())

    def notice(self, text: str) -> None:
        """See `Reporter`."""
        self._print(line("log", text))

    def step_started(self, node: Node) -> None:
        """See `Reporter`."""
        self._began[node.id] = time.monotonic()
        self._print(line("apply_start", f"{subject(node.step)}: {words(node.step)[0]}...", hook=_hook(node)))

    def step_progress(self, node: Node, text: str) -> None:
        """See `Reporter`."""
        hook = {**_hook(node), "elapsed_seconds": round(time.monotonic() - self._began[node.id], 3)}
        self._print(line("apply_progress", f"{subject(node.step)}: {text}", hook=hook))

    def step_done(self, node: Node, elapsed_s: float) -> None:
        """See `Reporter`."""
        hook = {**_hook(node), "elapsed_seconds": round(elapsed_s, 3)}
        self._print(line("apply_complete", f"{subject(node.step)}: {words(node.step)[1]}", hook=hook))

    def step_failed(self, node: Node, why: str, elapsed_s: float) -> None:
        """See `Reporter`."""
        hook = {**_hook(node), "elapsed_seconds": round(elapsed_s, 3)}
        self._print(line("apply_errored", f"{subject(node.step)}: {why}", level="error", hook=hook))

    def step_skipped(self, node: Node, because: str) -> None:
        """See `Reporter`."""
        hook = {**_hook(node), "reason": because}
        self._print(line("apply_skipped", f"{subject(node.step)}: {because}", level="warn", hook=hook))

    def _print(self, text: str) -> None:
        _print_if_possible(text)


def _hook(node: Node) -> dict[str, object]:
    return {"resource": {"addr": subject(node.step)}, "step": node.id, "action": words(node.step)[0].lower()}


class LiveReporter(TextReporter):
    """On a terminal: finished steps scroll up as lines, running ones stay below with their elapsed time."""

    def __init__(self, colourless: bool) -> None:
        super().__init__()
        from rich.console import Console
        from rich.live import Live

        self._console = Console(no_color=colourless or None, highlight=False)
        self._running: dict[str, tuple[Node, float, str]] = {}
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=8)
        self._live.start()

    def step_started(self, node: Node) -> None:
        """See `Reporter`."""
        self._running[node.id] = (node, time.monotonic(), "")

    def step_progress(self, node: Node, text: str) -> None:
        """See `Reporter`."""
        _, began, _ = self._running[node.id]
        self._running[node.id] = (node, began, text)

    def step_done(self, node: Node, elapsed_s: float) -> None:
        """See `Reporter`."""
        self._running.pop(node.id, None)
        super().step_done(node, elapsed_s)

    def step_failed(self, node: Node, why: str, elapsed_s: float) -> None:
        """See `Reporter`."""
        self._running.pop(node.id, None)
        super().step_failed(node, why, elapsed_s)

    def close(self) -> None:
        """See `Reporter`."""
        self._running.clear()
        self._live.stop()

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for node, began, waiting in list(self._running.values()):
            doing = words(node.step)[0].lower()
            table.add_row(subject(node.step), doing, f"{now - began:.1f}s", waiting or "")
        return table
