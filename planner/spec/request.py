"""A request of the serving API -> Desired: the same models and rules as for YAML, the same messages.

What differs: fields that nobody knows are ignored, because clients of newer versions send them, and places
are paths of keys, because a request has no lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from servestate.planner.diagnostics import Where
from servestate.planner.spec.bundle import Desired, DesiredEndpoint
from servestate.planner.spec.characters import named, refused_characters, shorten
from servestate.planner.spec.complete import complete
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import Block, Items, Path, dotted
from servestate.planner.spec.report import Report
from servestate.planner.spec.rules import RULES
from servestate.planner.spec.schema import model_in, validate
from servestate.planner.spec.site import Site
from servestate.planner.spec.support import model_units
from servestate.planner.spec.traffic_rules import external_by_name, mirror_problem

REQUEST = "request"
"""What the request is called in places, where a file's name would stand."""


def load_request(
    body: Mapping[str, Any], site: Site, owner: str, key: str, *, units: bool = False
) -> Desired:
    """The endpoint that `body` (CreateServingEndpoint) describes, as the only one of `owner`. `units` allows
    provisioned model units, which have calls of their own. Raises InvalidInput with everything that is
    wrong."""
    findings = Findings([REQUEST])
    block = _block(_known(Endpoint, body), (), findings)
    spec = validate(Endpoint, block, (), findings)
    if spec is not None:
        report = Report(findings, block, ())
        complete(spec)
        for rule in RULES:
            if not (units and rule is model_units):
                rule(spec, report)
        _check_mirror(spec, site, report)
    findings.check()
    assert spec is not None, "without a finding it is one"
    return Desired(owner, site, (DesiredEndpoint(key, spec, Where(REQUEST, 1, 1)),), findings.warnings())


def _check_mirror(endpoint: Endpoint, site: Site, report: Report) -> None:
    """What the site says of an endpoint of that name has to fit it."""
    policy = site.traffic.get(endpoint.name)
    if policy is None or policy.mirror is None or endpoint.config is None:
        return
    if problem := mirror_problem(endpoint.name, policy.mirror, external_by_name(endpoint)):
        report.error("SS211", *problem, "config", "served_entities")


def _known(kind: type[BaseModel], value: Any) -> Any:
    """`value` without what a `kind` has no field for, and without nulls, which mean "not given"."""
    if not isinstance(value, Mapping):
        return value
    fields = kind.model_fields
    return {
        key: _of_type(fields[key].annotation, below)
        for key, below in value.items()
        if key in fields and below is not None
    }


def _of_type(annotation: Any, value: Any) -> Any:
    model = model_in(annotation)
    if model is None:
        return value
    if isinstance(value, list):
        return [_known(model, item) for item in value]
    return _known(model, value)


def _block(value: Any, path: Path, findings: Findings) -> Any:
    """Plain JSON values as what the rules read, all written in one place. Text that plans and logs cannot
    show is a finding, as it is in YAML."""
    if isinstance(value, Mapping):
        block = Block.at(0)
        for key, below in value.items():
            block.add(key, _block(below, (*path, shorten(key)), findings), (0, 0))
            _check(key, path, findings)
        return block
    if isinstance(value, list):
        items = Items.at(0)
        for index, below in enumerate(value):
            items.add(_block(below, (*path, index), findings), 0)
        return items
    if isinstance(value, str):
        _check(value, path, findings)
    return value


def _check(text: str, path: Path, findings: Findings) -> None:
    for _, character in refused_characters(text):
        findings.error("SS151", f"{dotted(path)} contains {named(character)}", "delete it", 0, path)
        return
