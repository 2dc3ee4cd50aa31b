"""Documents -> one tree: read, joined, with the target applied and references replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from servestate.planner.owners import API_OWNER
from servestate.planner.spec.findings import Findings
from servestate.planner.spec.frame import framed
from servestate.planner.spec.layers import join
from servestate.planner.spec.places import MAX_DOCUMENTS, Block, Path, dotted
from servestate.planner.spec.targets import apply_target, chosen, name_prefix, prefixed
from servestate.planner.spec.variables import Scope, check_given, defaults
from servestate.planner.spec.yaml_text import Budget, read

ENDPOINTS = ("resources", "model_serving_endpoints")
DEFAULT_BUNDLE = "default"


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file's text. `name` is how findings call it."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """All that a load depends on."""

    documents: tuple[Document, ...]
    target: str | None
    variables: Mapping[str, str]
    environ: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Tree:
    """What the documents say together. `site` and `endpoints` are empty where nothing is said."""

    bundle: str
    target: str
    site: Block
    endpoints: Block


def compose(source: Source, findings: Findings) -> Tree:
    """The tree of `source`. Raises InvalidInput at once if a document cannot be read: what the others lack
    may stand in it."""
    if len(source.documents) > MAX_DOCUMENTS:
        what = f"there are {len(source.documents):,} files; {MAX_DOCUMENTS:,} is the most that is read"
        findings.error("SS155", what, "put several endpoints into each file")
        findings.check()
    budget = Budget()
    roots = [read(d.text, number, findings, budget) for number, d in enumerate(source.documents)]
    readable = [framed(root, findings) for root in roots if root is not None]
    if len(readable) < len(roots):
        findings.check()
    root = join(readable or [Block.at(0)], findings)
    target_name, target = chosen(root, source.target, findings)
    root = apply_target(root, target)
    scope = Scope(
        declared=defaults(_child(root, "variables")),
        target=defaults(_child(target, "variables")),
        given=source.variables,
        environ=source.environ,
        target_name=target_name,
        findings=findings,
        budget=budget,
    )
    check_given(scope)
    bundle, endpoints = _named(root, scope)
    site = _child(root, "servestate")
    if any("${" in document.text for document in source.documents):
        endpoints = scope.replace_block(endpoints, ENDPOINTS)
        site = scope.replace_block(site, ("servestate",))
    return Tree(bundle, target_name, site, endpoints)


def _named(root: Block, scope: Scope) -> tuple[str, Block]:
    """The bundle's name, and the endpoints with the prefix that a preset puts before theirs."""
    bundle, presets = _child(root, "bundle"), _child(root, "presets")
    scope.bundle = _text(scope, bundle, ("bundle", "name")) or DEFAULT_BUNDLE
    if scope.bundle == API_OWNER:
        what = f'no bundle can be called "{API_OWNER}": that owns what is made through the API'
        mark = bundle.marks_of("name")[1]
        scope.findings.error("SS128", what, "choose another name", mark, ("bundle", "name"))
    endpoints = _child(_child(root, "resources"), "model_serving_endpoints")
    if "name_prefix" in presets:
        prefix = _text(scope, presets, ("presets", "name_prefix"))
        endpoints = prefixed(endpoints, name_prefix(prefix))
    scope.endpoints = endpoints
    return scope.bundle, endpoints


def _text(scope: Scope, block: Block, path: Path) -> str:
    """The text at the last part of `path`, which leads to an entry of `block`."""
    key = str(path[-1])
    value = scope.replace_block(block, path[:-1]).get(key)
    if value is None or isinstance(value, str):
        return value or ""
    mark = block.marks_of(key)[1]
    scope.findings.error("SS161", f"{dotted(path)} must be text", "put the value in quotes", mark, path)
    return ""


def _child(block: Block, key: str) -> Block:
    """The mapping under `key`; an empty one if there is none."""
    found = block.get(key)
    return found if isinstance(found, Block) else Block.at(block.marks[0])
