"""The configuration of a client that is elsewhere, on the site of this server."""

from __future__ import annotations

from dataclasses import replace

from servestate.planner.diagnostics import Diagnostic, InvalidInput, Severity
from servestate.planner.spec.bundle import Desired, load
from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import Block
from servestate.planner.spec.report import Report
from servestate.planner.spec.site import Site
from servestate.planner.spec.site_rules import SITE_RULES
from servestate.planner.spec.tree import Document, Source, compose
from servestate.planner.spec.variables import ENVIRONMENT_PREFIX
from servestate.runtime.api.orders import Configuration

_OF_SERVER = ("state", "router", "management", "secrets", "providers", "access")
_OF_CLIENT = ("models", "workload_types", "overrides", "traffic")
_WITHOUT_TOKENS = "SS149"
"""What is warned of where no tokens are declared; those that count here are the server's."""


def desired_of(order: Configuration, site: Site) -> Desired:
    """What the documents ask for, on this site. Raises InvalidInput."""
    documents = tuple(Document(one.name, one.text) for one in order.documents)
    environ = {k: v for k, v in order.environ.items() if k.startswith(ENVIRONMENT_PREFIX)}
    source = Source(documents, order.target, order.variables, environ)
    desired = load(documents, target=order.target, variables=order.variables, environ=environ)
    theirs = desired.site
    given = {name: getattr(theirs, name) for name in _OF_CLIENT if name in theirs.model_fields_set}
    ours = site.model_copy(update=given)
    _check_site(ours, desired, source)
    kept = (one for one in desired.warnings if one.code != _WITHOUT_TOKENS or not site.access.tokens)
    return replace(desired, site=ours, warnings=(*kept, *_not_theirs(theirs, site)))


def _check_site(site: Site, desired: Desired, source: Source) -> None:
    """The client's part of the site must be right on the server's too: its hosts, its policy for images."""
    names = [document.name for document in source.documents]
    specs = [endpoint.spec for endpoint in desired.endpoints]

    def check(block: Block) -> Findings:
        findings = Findings(names)
        for rule in SITE_RULES:
            rule(site, specs, Report(findings, block, ("servestate",)))
        return findings

    if check(Block.at(0)).failed:
        # Read once more for the places; only who has made a mistake waits for that.
        try:
            check(compose(source, Findings(names)).site).check()
        except InvalidInput as error:
            raise InvalidInput(d for d in error.diagnostics if d.severity is Severity.ERROR) from None


def _not_theirs(theirs: Site, ours: Site) -> tuple[Diagnostic, ...]:
    """A warning of what the documents say about the server and it does otherwise."""
    given = theirs.model_fields_set
    other = [n for n in _OF_SERVER if n in given and getattr(theirs, n) != getattr(ours, n)]
    if not other:
        return ()
    what = (
        f"{', '.join(f'servestate.{name}' for name in other)} of this configuration counts for nothing here"
    )
    fix = "with --server that is the server's own; change it there"
    return (Diagnostic("SS619", what, fix, severity=Severity.WARNING),)
