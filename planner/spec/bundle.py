"""YAML documents -> Desired: what should run, who owns it, and how this site realises it."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from servestate.planner.diagnostics import Diagnostic, Where
from servestate.planner.spec.complete import complete
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.findings import Findings, TooMany
from servestate.planner.spec.gateway_rules import limits_of_nobody
from servestate.planner.spec.places import Block, dotted, mark_of, where
from servestate.planner.spec.report import Report, written_path
from servestate.planner.spec.rules import RULES
from servestate.planner.spec.schema import validate
from servestate.planner.spec.site import Site
from servestate.planner.spec.site_rules import ABSENCE_RULES, SITE_RULES
from servestate.planner.spec.tree import ENDPOINTS, Document, Source, Tree, compose

__all__ = ["Desired", "DesiredEndpoint", "Document", "load"]

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DesiredEndpoint:
    """One endpoint block. `key` is its key in the YAML, `where` the place of that key; the endpoint's name is
    `spec.name`."""

    key: str
    spec: Endpoint
    where: Where


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything a bundle asks for. `bundle` (`NAME`, or `NAME@TARGET`) owns the endpoints, which are sorted
    by name."""

    bundle: str
    site: Site
    endpoints: tuple[DesiredEndpoint, ...]
    warnings: tuple[Diagnostic, ...]
    _places: Places | None = field(default=None, repr=False, compare=False)

    def where(self, endpoint: str, *path: str | int) -> Where:
        """The best known place of a field of `endpoint` (its name), for findings made after loading.

        `path` is spelled as in the loaded model (`"config", "served_entities", 0, "entity_name"`); an entity
        may be given by name in place of its position. Raises KeyError for an endpoint that is not desired.
        """
        at = bisect_left(self.endpoints, endpoint, key=_name)
        if at == len(self.endpoints) or self.endpoints[at].spec.name != endpoint:
            raise KeyError(endpoint)
        found = self.endpoints[at]
        return found.where if self._places is None or not path else self._places.where(found.key, path)


class Places:
    """Finds places in the documents. They are read again for that: kept trees would hold tens of megabytes
    through every plan, and only a plan with findings asks."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tree: Tree | None = None

    def where(self, key: str, path: tuple[str | int, ...]) -> Where:
        """The place of the value at `path` inside the endpoint block `key`."""
        findings = Findings([d.name for d in self._source.documents])
        if self._tree is None:
            with _without_collector():
                self._tree = compose(self._source, findings)
        block = self._tree.endpoints[key]
        written = written_path(block, path)
        return where(mark_of(block, written), findings.names, (*ENDPOINTS, key, *written))


def load(
    documents: Sequence[Document],
    *,
    target: str | None = None,
    variables: Mapping[str, str] = _NOTHING,
    environ: Mapping[str, str] = _NOTHING,
) -> Desired:
    """The desired state that `documents` describe together.

    `target` is the bundle target to apply (None: the default one). `variables` are those given by hand;
    `environ` is searched for `BUNDLE_VAR_<name>`. Raises InvalidInput with everything that is wrong, in the
    order of the documents.
    """
    source = Source(tuple(documents), target, dict(variables), environ)
    findings = Findings([document.name for document in source.documents])
    try:
        with _without_collector():
            return _load(source, findings)
    except TooMany:
        findings.check()
        raise


def _load(source: Source, findings: Findings) -> Desired:
    tree = compose(source, findings)
    site = validate(Site, tree.site, ("servestate",), findings)
    endpoints = _endpoints(tree.endpoints, site, findings)
    if site is not None:
        _check_site(site, tree.site, endpoints, findings)
    findings.check()
    assert site is not None, "without a finding it is one"
    endpoints.sort(key=_name)
    # Targets of one bundle share its YAML, not its endpoints: applying one must not delete those of another.
    owner = f"{tree.bundle}@{tree.target}" if tree.target else tree.bundle
    return Desired(owner, site, tuple(endpoints), findings.warnings(), Places(source))


def _name(endpoint: DesiredEndpoint) -> str:
    return endpoint.spec.name


def _check_site(site: Site, block: Block, endpoints: Sequence[DesiredEndpoint], findings: Findings) -> None:
    whole = not findings.failed  # else what seems to be missing may be what could not be read
    report = Report(findings, block, ("servestate",))
    specs = [endpoint.spec for endpoint in endpoints]
    for rule in (*SITE_RULES, *ABSENCE_RULES) if whole else SITE_RULES:
        rule(site, specs, report)


def _endpoints(blocks: Block, site: Site | None, findings: Findings) -> list[DesiredEndpoint]:
    loaded: list[DesiredEndpoint] = []
    first: dict[str, DesiredEndpoint] = {}
    for key, mark in zip(list(blocks), blocks.marks[1::2], strict=True):
        path = (*ENDPOINTS, key)
        # Taken out of the tree, so that the memory of blocks becomes that of models instead of adding to it.
        block = blocks.pop(key)
        if not isinstance(block, Block):
            what = f"{dotted(path)} must be a mapping"
            findings.error(
                "SS161", what, "write its keys below it, indented; it needs at least a name", mark, path
            )
            continue
        spec = validate(Endpoint, block, path, findings)
        if spec is None:
            continue
        report = Report(findings, block, path)
        complete(spec)
        for rule in RULES:
            rule(spec, report)
        if site is not None and not site.access.tokens:
            limits_of_nobody(spec, report)
        endpoint = DesiredEndpoint(key, spec, where(mark, findings.names, path))
        _check_unique(endpoint, first.setdefault(spec.name, endpoint), report)
        loaded.append(endpoint)
    return loaded


def _check_unique(endpoint: DesiredEndpoint, first: DesiredEndpoint, report: Report) -> None:
    """R1: two blocks cannot be the same endpoint."""
    if endpoint is not first:
        what = f'two endpoint blocks are called "{endpoint.spec.name}"; first at {first.where}'
        report.error("SS120", what, f"rename {first.key} or {endpoint.key}", "name")


@contextmanager
def _without_collector() -> Iterator[None]:
    """Loading makes no reference cycles, and the collector would walk the growing trees again and again: that
    doubles the time of a large bundle."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
