"""Which images are pulled where, and what waits for it."""

from __future__ import annotations

from collections.abc import Sequence

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import HERE, Container, LaunchSpec, Placement
from servestate.planner.pulls import with_pulls
from servestate.planner.rollout import publish_without_id
from servestate.planner.state import EndpointRecord
from servestate.planner.steps import Launch, Node, PublishTable, Pull
from servestate.planner.surroundings import ImageFacts, Surroundings

IMAGE, DIGEST, OTHER = "engine:1", "sha256:" + "a" * 64, "sha256:" + "b" * 64
PULL = f"pull:h1:{IMAGE}@sha256:{'a' * 12}"


def launch(endpoint: str, entity: str, host: str = "h1", container: bool = True) -> Node:
    spec = LaunchSpec("docker", "vllm", "m", container=Container(IMAGE, DIGEST) if container else None)
    address = InstanceAddress(endpoint, entity, "0badcafe")
    return Node(f"launch:{address}", Launch(address, spec, placement=Placement(host)), ("before",))


def planned(nodes: Sequence[Node], **facts: ImageFacts) -> dict[str, Node]:
    images = {(host, IMAGE): found for host, found in facts.items()}
    return {n.id: n for n in with_pulls(nodes, Surroundings(images=images))}


def pulls(nodes: dict[str, Node]) -> list[Pull]:
    return [n.step for n in nodes.values() if isinstance(n.step, Pull)]


def test_what_is_there_is_not_pulled() -> None:
    nodes = [launch("one", "a")]
    assert list(planned(nodes, h1=ImageFacts(DIGEST, present=True)).values()) == nodes
    assert list(planned(nodes).values()) == nodes  # nobody was asked: a repair of what ran there


def test_what_is_missing_or_moved_on_is_pulled_at_the_digest_that_was_planned() -> None:
    for facts in (ImageFacts(DIGEST), ImageFacts(OTHER, present=True, portable=True)):
        found = planned([launch("one", "a")], h1=facts)
        assert pulls(found) == [Pull("docker", "h1", IMAGE, DIGEST)]
        assert found[launch("one", "a").id].needs == ("before", PULL)


def test_an_image_is_pulled_once_to_each_host() -> None:
    nodes = [launch("one", "a"), launch("one", "b"), launch("two", "a", "h2")]
    found = planned(nodes, h1=ImageFacts(DIGEST), h2=ImageFacts(DIGEST))
    assert [step.host for step in pulls(found)] == ["h1", "h2"]


def test_the_old_instances_keep_their_routes_until_every_image_is_there() -> None:
    publish = Node(publish_without_id("one"), PublishTable(EndpointRecord("one", "one", "shop", "{}", 1)))
    found = planned([publish, launch("one", "a"), launch("one", "b")], h1=ImageFacts(DIGEST))
    assert found[publish.id].needs == (PULL,)


def test_a_process_needs_no_image() -> None:
    node = launch("one", "a", HERE.host, container=False)
    assert list(planned([node]).values()) == [node]
