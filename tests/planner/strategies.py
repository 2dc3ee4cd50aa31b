"""Random plans and records for properties: any values that the types allow, sense or no sense."""

from __future__ import annotations

from hypothesis import strategies as st

from servestate.planner.address import EndpointAddress, EntityAddress, InstanceAddress
from servestate.planner.capacity import HostUse
from servestate.planner.change import Action, Category, Change, FieldDiff, Reason
from servestate.planner.drift import Drift, DriftKind
from servestate.planner.launch import HERE, Container, ExternalSpec, LaunchSpec, Mount, Placement
from servestate.planner.plan import Plan
from servestate.planner.state import EndpointRecord, Instance, Phase, Target
from servestate.planner.steps import (
    AwaitReady,
    Drain,
    Forget,
    Launch,
    Node,
    PublishTable,
    Pull,
    Register,
    RewriteTable,
    Stop,
    Withdraw,
)

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,8}", fullmatch=True)
WHOLE = st.integers(0, 200)
SECONDS = st.floats(0, 1e6)
PAIRS = st.lists(st.tuples(NAMES, TEXT), max_size=2).map(tuple)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ATTRIBUTES = st.none() | st.dictionaries(TEXT, VALUES, max_size=4)

ENDPOINTS = st.builds(EndpointAddress, NAMES)
ENTITIES = st.builds(EntityAddress, NAMES, NAMES)
INSTANCES = st.builds(InstanceAddress, NAMES, NAMES, st.from_regex(r"[0-9a-f]{1,8}", fullmatch=True), WHOLE)
FACTS = st.dictionaries(NAMES, TEXT, max_size=3).map(lambda found: tuple(sorted(found.items())))
SHARES = st.floats(0.01, 1)
PLACEMENTS = st.just(HERE) | st.builds(Placement, NAMES, st.lists(NAMES, max_size=2).map(tuple), SHARES)
MOUNTS = st.lists(st.builds(Mount, TEXT, TEXT, st.booleans()), max_size=2).map(tuple)
CONTAINERS = st.builds(
    Container, TEXT, TEXT, TEXT, WHOLE, SHARES, WHOLE, WHOLE, NAMES, MOUNTS, st.booleans(), WHOLE
)
OPTIONS = st.dictionaries(NAMES, TEXT | WHOLE | st.booleans() | SHARES, max_size=2)
LAUNCHES = st.builds(
    LaunchSpec,
    NAMES,
    NAMES,
    TEXT,
    TEXT,
    TEXT,
    st.lists(TEXT, max_size=2).map(tuple),
    PAIRS,
    TEXT,
    OPTIONS.map(lambda found: tuple(sorted(found.items()))),
    st.integers(0, 8),
    SHARES,
    TEXT,
    st.none() | CONTAINERS,
)
EXTERNALS = st.builds(ExternalSpec, NAMES, TEXT, TEXT, TEXT, NAMES, TEXT, TEXT, PAIRS)
TARGETS = st.builds(Target, NAMES, WHOLE, st.lists(INSTANCES, max_size=2).map(tuple))
RECORDS = st.builds(
    EndpointRecord,
    NAMES,
    NAMES,
    TEXT,
    TEXT,
    WHOLE,
    st.lists(TARGETS, max_size=2).map(tuple),
    st.booleans(),
    traffic=TEXT,
)

STEPS = st.one_of(
    st.builds(Pull, NAMES, NAMES, TEXT, TEXT),
    st.builds(Launch, INSTANCES, LAUNCHES, SECONDS, SECONDS, PLACEMENTS),
    st.builds(Register, INSTANCES, EXTERNALS),
    st.builds(AwaitReady, INSTANCES, SECONDS),
    st.builds(PublishTable, RECORDS),
    st.builds(Withdraw, ENDPOINTS),
    st.builds(RewriteTable),
    st.builds(Drain, INSTANCES, SECONDS),
    st.builds(Stop, INSTANCES, NAMES, TEXT, SECONDS),
    st.builds(Forget, ENDPOINTS | INSTANCES),
)
FIELDS = st.builds(FieldDiff, TEXT, VALUES, VALUES, st.booleans())
CHANGES = st.builds(
    Change,
    ENDPOINTS | ENTITIES,
    st.sampled_from(Action),
    st.sampled_from(Reason),
    st.sampled_from(Category),
    ATTRIBUTES,
    ATTRIBUTES,
    st.lists(FIELDS, max_size=2).map(tuple),
    TEXT,
    TEXT,
    st.lists(TEXT, max_size=2).map(tuple),
)
USES = st.builds(HostUse, NAMES, WHOLE, WHOLE, WHOLE, WHOLE)
DRIFTS = st.builds(Drift, TEXT, st.sampled_from(DriftKind), TEXT, TEXT)


def records() -> st.SearchStrategy[EndpointRecord]:
    """Endpoint records."""
    return RECORDS


def instances() -> st.SearchStrategy[Instance]:
    """Instances of state."""
    told = (st.sampled_from(Phase), TEXT, TEXT, TEXT, TEXT)
    launched = st.builds(Instance, INSTANCES, LAUNCHES, *told, SECONDS, SECONDS, PLACEMENTS, FACTS)
    return launched | st.builds(Instance, INSTANCES, EXTERNALS, *told)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans whose steps need only steps before them; nothing else about them makes sense."""
    steps = draw(st.lists(STEPS, max_size=4))
    ids = [f"step-{i}" for i in range(len(steps))]

    def earlier(place: int) -> tuple[str, ...]:
        return tuple(sorted(draw(st.sets(st.sampled_from(ids[:place]))))) if place else ()

    nodes = tuple(Node(ids[i], step, earlier(i), earlier(i)) for i, step in enumerate(steps))
    observed = draw(st.dictionaries(INSTANCES.map(str), FACTS, max_size=2))
    return Plan(
        lineage=draw(TEXT),
        serial=draw(WHOLE),
        bundle=draw(NAMES),
        desired_digest=draw(TEXT),
        observed=tuple(sorted(observed.items())),
        drift=tuple(draw(st.lists(DRIFTS, max_size=2))),
        changes=tuple(draw(st.lists(CHANGES, max_size=3))),
        nodes=nodes,
        unchanged=draw(WHOLE),
        capacity=tuple(draw(st.lists(USES, max_size=2))),
        destroy=draw(st.booleans()),
    )
