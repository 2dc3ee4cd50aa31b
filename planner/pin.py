"""Image names -> digests: what a name means now becomes part of the launch spec, and so of its revision.

A name that has moved on is then a change like any other, and what is launched is what was planned, whatever
the name means by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from servestate.planner.address import EntityAddress
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.launch import Container, LaunchSpec
from servestate.planner.resolve import Resolved, ResolvedEndpoint, ResolvedEntity
from servestate.planner.revision import revision
from servestate.planner.state import Instance
from servestate.planner.surroundings import Host, ImageFacts, Surroundings

_Groups = Mapping[EntityAddress, Sequence[Instance]]


def pin(desired: Resolved, recorded: _Groups, surroundings: Surroundings) -> Resolved:
    """`desired` with every image at a digest. Raises InvalidInput with every image that means nothing on any
    host that its entity may run on."""
    found: list[Diagnostic] = []
    endpoints = tuple(_endpoint(e, recorded, surroundings, found) for e in desired.endpoints)
    if found:
        raise InvalidInput(found)
    return replace(desired, endpoints=endpoints)


def _endpoint(
    endpoint: ResolvedEndpoint, recorded: _Groups, surroundings: Surroundings, found: list[Diagnostic]
) -> ResolvedEndpoint:
    if not any(_container(entity) for entity in endpoint.entities):
        return endpoint
    entities = []
    for entity in endpoint.entities:
        address = EntityAddress(endpoint.name, entity.name)
        try:
            entities.append(_entity(entity, recorded.get(address, ()), surroundings))
        except InvalidInput as error:
            found += [replace(d, what=f"{address}: {d.what}") for d in error.diagnostics]
    return replace(endpoint, entities=tuple(entities))


def _container(entity: ResolvedEntity) -> Container | None:
    return entity.spec.container if isinstance(entity.spec, LaunchSpec) else None


def _entity(
    entity: ResolvedEntity, recorded: Sequence[Instance], surroundings: Surroundings
) -> ResolvedEntity:
    container, spec = _container(entity), entity.spec
    if container is None or container.digest:
        return entity
    assert isinstance(spec, LaunchSpec)
    digest = _digest(spec.provider, container.image, entity.hosts, recorded, surroundings)
    pinned = replace(spec, container=replace(container, digest=digest))
    return replace(entity, spec=pinned, revision=revision(pinned))


def _digest(
    provider: str, image: str, hosts: Sequence[str], recorded: Sequence[Instance], surroundings: Surroundings
) -> str:
    """The digest that is recorded, where the name still means it on some host, else that of the first host
    that has the image, else that of the registry."""
    facts = {host: surroundings.images.get((host, image), ImageFacts()) for host in hosts}
    known = [facts[host] for host in sorted(facts) if facts[host].digest]
    known.sort(key=lambda one: not one.present)
    digests = [one.digest for one in known]
    for instance in recorded:
        spec = instance.spec
        before = spec.container if isinstance(spec, LaunchSpec) else None
        if before is not None and before.image == image and before.digest in digests:
            return before.digest
    if digests:
        return digests[0]
    places = {host: surroundings.hosts.get((provider, host), Host(host)) for host in hosts}
    troubles = [
        f"{host}: {one.trouble or places[host].trouble or 'it was not asked'}"
        for host, one in sorted(facts.items())
    ]
    what = f'image "{image}" is not to be had'
    fix = "correct its name, pull or load it there, or allow pulls: --pull missing"
    raise InvalidInput([Diagnostic("SS320", what, fix, detail="\n".join(troubles))])
