"""The step graph: order, what is ready, what a failure takes with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from servestate.planner.steps import Node


class CycleError(ValueError):
    """The steps need each other in a circle, need a step that is not there, or share an id: a defect of the
    planner or an edited plan file."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes by id in a valid order, and who waits for whom: `dependents` for its success, `followers` only
    for its end."""

    nodes: Mapping[str, Node]
    dependents: Mapping[str, tuple[str, ...]]
    followers: Mapping[str, tuple[str, ...]]

    def downstream(self, id: str) -> list[str]:
        """Everything that needs `id`, directly or not, in order."""
        found: dict[str, None] = {}
        queue = list(self.dependents.get(id, ()))
        while queue:
            current = queue.pop()
            if current not in found:
                found[current] = None
                queue += self.dependents.get(current, ())
        return [n for n in self.nodes if n in found]


def build(nodes: Iterable[Node]) -> Graph:
    """The graph of `nodes`, topologically ordered, ties in the order given. Raises CycleError."""
    by_id: dict[str, Node] = {}
    for node in nodes:
        if by_id.setdefault(node.id, node) is not node:
            raise CycleError(f'two steps are called "{node.id}"')
    dependents: dict[str, list[str]] = defaultdict(list)
    followers: dict[str, list[str]] = defaultdict(list)
    for node in by_id.values():
        for ids, waiting in ((node.needs, dependents), (node.after, followers)):
            for id in ids:
                if id not in by_id:
                    raise CycleError(f'step "{node.id}" needs "{id}", which is not in the plan')
                waiting[id].append(node.id)
    order = _topological(by_id, dependents, followers)
    return Graph({id: by_id[id] for id in order}, _frozen(dependents), _frozen(followers))


def _frozen(waiting: Mapping[str, Sequence[str]]) -> Mapping[str, tuple[str, ...]]:
    return {id: tuple(ids) for id, ids in waiting.items()}


def _topological(
    by_id: Mapping[str, Node],
    dependents: Mapping[str, Sequence[str]],
    followers: Mapping[str, Sequence[str]],
) -> list[str]:
    missing = {node.id: len(node.needs) + len(node.after) for node in by_id.values()}
    ready = [id for id in by_id if not missing[id]]
    order: list[str] = []
    for id in ready:  # grows while it is walked
        order.append(id)
        for waiting in (*dependents.get(id, ()), *followers.get(id, ())):
            missing[waiting] -= 1
            if not missing[waiting]:
                ready.append(waiting)
    if len(order) < len(by_id):
        stuck = sorted(set(by_id) - set(order))
        raise CycleError(f"these steps need each other in a circle: {', '.join(stuck)}")
    return order
