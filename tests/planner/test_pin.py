"""Image names and what they mean: which digest is taken, and when none is to be had."""

from __future__ import annotations

from dataclasses import replace

import pytest

from servestate.planner.address import EntityAddress, InstanceAddress
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.launch import Container, LaunchSpec
from servestate.planner.pin import pin
from servestate.planner.resolve import Resolved, ResolvedEntity
from servestate.planner.revision import revision
from servestate.planner.state import Instance, Phase
from servestate.planner.surroundings import Host, ImageFacts, Surroundings
from servestate.planner.timings import Timings
from tests.planner.blocks import bundle, endpoint, external, local

IMAGE, OLD, NEW = "engine:1", "sha256:" + "0" * 64, "sha256:" + "1" * 64


def contained(*hosts: str, digest: str = "", image: str = IMAGE) -> ResolvedEntity:
    spec = LaunchSpec("docker", "vllm", "m", container=Container(image, digest))
    return ResolvedEntity("a", 100, spec, revision(spec), Timings(), hosts or ("h1",))


def known(**facts: ImageFacts) -> Surroundings:
    return Surroundings(images={(host, IMAGE): found for host, found in facts.items()})


def digest_of(desired: Resolved) -> str:
    spec = desired.endpoints[0].entities[0].spec
    assert isinstance(spec, LaunchSpec)
    assert spec.container is not None
    assert desired.endpoints[0].entities[0].revision == revision(spec)
    return spec.container.digest


def pinned(entity: ResolvedEntity, surroundings: Surroundings, recorded: str = "") -> str:
    groups = {}
    if recorded:
        spec = replace(entity.spec, container=Container(IMAGE, recorded))  # type: ignore[type-var]
        address = InstanceAddress("one", "a", "0badcafe")
        groups = {EntityAddress("one", "a"): [Instance(address, spec, Phase.READY)]}
    return digest_of(pin(bundle(endpoint("one", entity)), groups, surroundings))


def test_the_digest_becomes_part_of_the_revision() -> None:
    found = {pinned(contained(), known(h1=ImageFacts(digest, present=True))) for digest in (OLD, NEW)}
    assert found == {OLD, NEW}


def test_what_runs_stays_while_its_name_means_it_on_any_host() -> None:
    facts = known(h1=ImageFacts(NEW, present=True), h2=ImageFacts(OLD, portable=True))
    assert pinned(contained("h1", "h2"), facts, recorded=OLD) == OLD
    assert pinned(contained("h1", "h2"), facts) == NEW
    assert pinned(contained("h1"), facts, recorded=OLD) == NEW


def test_what_is_there_goes_before_what_would_have_to_be_pulled() -> None:
    facts = known(h1=ImageFacts(NEW, portable=True), h2=ImageFacts(OLD, present=True))
    assert pinned(contained("h1", "h2"), facts) == OLD


def test_a_digest_that_was_written_is_kept_and_nobody_is_asked() -> None:
    assert pinned(contained(digest=OLD), Surroundings()) == OLD


def test_what_is_no_container_is_left_alone() -> None:
    desired = bundle(endpoint("one", local("a", 50), external("x", 50)))
    assert pin(desired, {}, Surroundings()) == desired


def test_every_image_that_is_not_to_be_had_is_reported_with_the_reason_of_each_host() -> None:
    facts = replace(
        known(h1=ImageFacts(trouble="pull is never")),
        hosts={("docker", "h2"): Host("h2", trouble="no route")},
    )
    desired = bundle(*(endpoint(name, contained("h1", "h2", "h3")) for name in ("one", "two")))
    with pytest.raises(InvalidInput) as refused:
        pin(desired, {}, facts)
    first, second = refused.value.diagnostics
    assert (first.code, second.code) == ("SS320", "SS320")
    assert first.what.startswith("one/a: ")
    assert second.what.startswith("two/a: ")
    assert first.detail == "h1: pull is never\nh2: no route\nh3: it was not asked"
