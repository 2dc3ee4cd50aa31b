"""Steps that fetch images, and what waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from servestate.planner.rollout import publish_without_id
from servestate.planner.steps import Launch, Node, Pull
from servestate.planner.surroundings import ImageFacts, Surroundings

_DIGITS = 19
"""Of a digest in the id of a step: `sha256:` and 12 of its hex digits."""


def with_pulls(nodes: Sequence[Node], surroundings: Surroundings) -> list[Node]:
    """`nodes` with a pull for every image that a launch needs and its host does not have.

    An endpoint whose old instances stop first keeps them until the image is there: the gap without an answer
    must not be longer by a download.
    """
    pulls: dict[str, Node] = {}
    waiting: dict[str, dict[str, None]] = {}  # several launches may wait for one pull, a step only once
    for node in nodes:
        if isinstance(node.step, Launch) and (pull := _pull(node.step, surroundings)) is not None:
            pulls[pull.id] = pull
            for id in (node.id, publish_without_id(node.step.address.endpoint)):
                waiting.setdefault(id, {})[pull.id] = None
    waited = [replace(n, needs=(*n.needs, *waiting[n.id])) if n.id in waiting else n for n in nodes]
    return [*pulls.values(), *waited]


def _pull(launch: Launch, surroundings: Surroundings) -> Node | None:
    container, host = launch.spec.container, launch.placement.host
    if container is None:
        return None
    facts = surroundings.images.get((host, container.image), ImageFacts(container.digest, present=True))
    if facts.present and facts.digest == container.digest:
        return None
    step = Pull(launch.spec.provider, host, container.image, container.digest)
    return Node(f"pull:{host}:{container.image}@{container.digest[:_DIGITS]}", step)
