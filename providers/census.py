"""Who of ours runs: every launch's processes, found by the marks they wear and by who started whom.

A launch is a tree: the shim, the engine below it, and what the engine started. All inherit the marks. A
process that has overwritten its environment is still found below its shim.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from servestate.providers import labels, proc, shim
from servestate.providers.identity import Identity, boot_id
from servestate.providers.labels import Worn
from servestate.providers.proc import Stat


@dataclass(frozen=True, slots=True)
class Tree:
    """The processes of one launch that are not dead. `shim` is None when only leftovers of it run."""

    worn: Worn
    shim: Stat | None
    others: tuple[Stat, ...]

    @property
    def started(self) -> bool:
        """Whether the word to start was given: before it there is nothing to report."""
        return self.shim is not None and self.shim.comm == shim.COMM_RUNNING

    @property
    def paused(self) -> bool:
        """Whether the shim or the engine itself is stopped by a signal."""
        head = () if self.shim is None else (self.shim,)
        engines = (one for one in self.others if head and one.ppid == head[0].pid)
        return any(one.paused for one in (*head, *engines))

    @property
    def head(self) -> Identity:
        """What a handle of this launch names: the shim, else the oldest leftover."""
        oldest = self.shim or min(self.others, key=lambda one: (one.start, one.pid))
        return Identity(oldest.pid, oldest.start, boot_id())

    @property
    def members(self) -> tuple[Identity, ...]:
        """All but the shim."""
        boot = boot_id()
        return tuple(Identity(one.pid, one.start, boot) for one in self.others)


def trees() -> list[Tree]:
    """Every launch that has processes now, of every lineage."""
    everyone = {one.pid: one for one in proc.processes() if not one.dead}
    everyone.pop(os.getpid(), None)  # servestate may itself be run below an engine
    marked: dict[str, list[tuple[Stat, Worn, bool]]] = {}
    for one in everyone.values():
        env = proc.environ(one.pid, having=labels.NONCE)
        worn = labels.from_env(env)
        if worn is not None:
            is_shim = env.get(labels.ROLE) == labels.SHIM_ROLE
            marked.setdefault(worn.nonce, []).append((one, worn, is_shim))
    children = proc.children_of(everyone.values())
    return [_tree(wearers, everyone, children) for wearers in marked.values()]


def tree_of(nonce: str) -> Tree | None:
    """The processes of that launch, None when there are none."""
    return next((tree for tree in trees() if tree.worn.nonce == nonce), None)


def _tree(
    wearers: list[tuple[Stat, Worn, bool]],
    everyone: Mapping[int, Stat],
    children: Mapping[int, Sequence[int]],
) -> Tree:
    shim_stat = _shim(one for one, _, is_shim in wearers if is_shim)
    roots = [one.pid for one, _, _ in wearers]
    pids = proc.below(roots, children)
    if shim_stat is not None:
        pids.discard(shim_stat.pid)
    return Tree(wearers[0][1], shim_stat, tuple(everyone[pid] for pid in sorted(pids)))


def _shim(candidates: Iterable[Stat]) -> Stat | None:
    # Between fork and exec the engine still looks like its shim, so the one that has no shim above it is it.
    by_pid = {one.pid: one for one in candidates}
    return next((one for one in by_pid.values() if one.ppid not in by_pid), None)
