"""The step graph: order, what a failure takes with it, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.graph import CycleError, build
from servestate.planner.steps import Node, RewriteTable


def node(id: str, *needs: str) -> Node:
    return Node(id, RewriteTable(), needs)


def test_needs_come_first_and_ties_keep_the_given_order() -> None:
    graph = build([node("c", "a"), node("b"), node("a"), node("d", "c", "b")])
    assert list(graph.nodes) == ["b", "a", "c", "d"]


def test_a_cycle_is_refused_and_named() -> None:
    with pytest.raises(CycleError, match=r"circle: a, b$"):
        build([node("a", "b"), node("b", "a"), node("c")])


def test_a_step_cannot_need_itself() -> None:
    with pytest.raises(CycleError, match="circle: a"):
        build([node("a", "a")])


def test_a_need_that_is_not_there_is_refused_and_named() -> None:
    with pytest.raises(CycleError, match='"a" needs "gone"'):
        build([node("a", "gone")])


def test_two_steps_cannot_share_an_id() -> None:
    """One of them would silently not be done."""
    with pytest.raises(CycleError, match='two steps are called "a"'):
        build([node("a"), node("b", "a"), node("a")])


def test_downstream_is_everything_that_needs_it_in_order() -> None:
    graph = build([node("a"), node("b", "a"), node("c", "b"), node("d", "a", "c"), node("e")])
    assert graph.downstream("a") == ["b", "c", "d"]
    assert graph.downstream("c") == ["d"]
    assert graph.downstream("e") == []


@st.composite
def acyclic(draw: st.DrawFn) -> list[Node]:
    size = draw(st.integers(0, 12))
    nodes = [
        node(str(i), *map(str, draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else ()))
        for i in range(size)
    ]
    return draw(st.permutations(nodes))


@given(acyclic())
def test_any_acyclic_graph_is_ordered(nodes: list[Node]) -> None:
    graph = build(nodes)
    place = {id: i for i, id in enumerate(graph.nodes)}
    assert set(place) == {n.id for n in nodes}
    assert all(place[need] < place[n.id] for n in nodes for need in n.needs)
    for n in nodes:
        for below in graph.downstream(n.id):
            assert place[below] > place[n.id]
