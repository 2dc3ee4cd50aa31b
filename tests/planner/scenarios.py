"""Small worlds: every endpoint a test needs, few enough that all pairs of them can be tried."""

from __future__ import annotations

from itertools import product

from servestate.planner.resolve import Resolved, ResolvedEndpoint
from tests.planner.blocks import NOTHING, bundle, endpoint, external, local

ONE: dict[str, ResolvedEndpoint | None] = {
    "none": None,
    "a": endpoint("one", local("a", 100)),
    "A": endpoint("one", local("a", 100, "B")),
    "A-recreate": endpoint("one", local("a", 100, "B", recreate=True)),
    "a60-b40": endpoint("one", local("a", 60), local("b", 40)),
    "a40-b60": endpoint("one", local("a", 40), local("b", 60)),
    "a60-b40-mirrored": endpoint(
        "one", local("a", 60), local("b", 40), traffic='{"mirror":{"entity":"b","percent":5}}'
    ),
    "A60-b40": endpoint("one", local("a", 60, "B"), local("b", 40)),
    "A60-B40": endpoint("one", local("a", 60, "B"), local("b", 40, "B")),
    "A60-B40-recreate": endpoint(
        "one", local("a", 60, "B", recreate=True), local("b", 40, "B", recreate=True)
    ),
    "b": endpoint("one", local("b", 100)),
    "a100-x0": endpoint("one", local("a", 100), external("x", 0)),
    "a50-x50": endpoint("one", local("a", 50), external("x", 50)),
    "x": endpoint("one", external("x", 100)),
    "X": endpoint("one", external("x", 100, "two.example")),
    "a-described": endpoint("one", local("a", 100), description="the same, described"),
}
TWO: dict[str, ResolvedEndpoint | None] = {"none": None, "c": endpoint("two", local("c", 100))}


def _world(*endpoints: ResolvedEndpoint | None) -> Resolved:
    return bundle(*(e for e in endpoints if e is not None))


WORLDS: dict[str, Resolved] = {f"{one}+{two}": _world(ONE[one], TWO[two]) for one, two in product(ONE, TWO)}
PAIRS = list(product(WORLDS, WORLDS))

SCENARIOS: dict[str, tuple[Resolved, Resolved]] = {
    "create": (NOTHING, WORLDS["a60-b40+c"]),
    "create with external": (NOTHING, WORLDS["a50-x50+none"]),
    "split": (WORLDS["a60-b40+none"], WORLDS["a40-b60+none"]),
    "mirrored": (WORLDS["a60-b40+none"], WORLDS["a60-b40-mirrored+none"]),
    "surge": (WORLDS["a60-b40+none"], WORLDS["A60-B40+none"]),
    "recreate": (WORLDS["a60-b40+none"], WORLDS["A60-B40-recreate+none"]),
    "entity added": (WORLDS["a+c"], WORLDS["a60-b40+c"]),
    "entity removed": (WORLDS["a60-b40+c"], WORLDS["b+c"]),
    "local to external": (WORLDS["a50-x50+none"], WORLDS["X+none"]),
    "endpoint removed": (WORLDS["a60-b40+c"], WORLDS["none+c"]),
    "all at once": (WORLDS["a60-b40+none"], WORLDS["A-recreate+c"]),
    "destroy": (WORLDS["a50-x50+c"], NOTHING),
}
"""Before -> after: what is crashed, failed and interrupted at every place."""
