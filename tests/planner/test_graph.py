"""The step graph: order, what a failure takes with it, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.graph import CycleError, build
from servestate.planner.steps import Node, RewriteTable


def node(id: str, *needs: str, after: tuple[str, ...] = ()) -> Node:
    return Node(id, RewriteTable(), needs, after)


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


def test_what_comes_after_is_ordered_and_is_not_downstream() -> None:
    graph = build([node("b", after=("a",)), node("c", "b"), node("a")])
    assert list(graph.nodes) == ["a", "b", "c"]
    assert graph.followers == {"a": ("b",)}
    assert graph.downstream("a") == []


def test_a_circle_through_both_kinds_of_edges_is_refused() -> None:
    with pytest.raises(CycleError, match="circle: a, b"):
        build([node("a", "b"), node("b", after=("a",))])


def test_coming_after_a_step_that_is_not_there_is_refused() -> None:
    with pytest.raises(CycleError, match='"a" needs "gone"'):
        build([node("a", after=("gone",))])


def test_two_steps_cannot_share_an_id() -> None:
    """One of them would silently not be done."""
    with pytest.raises(CycleError, match='two steps are called "a"'):
        build([node("a"), node("b", "a"), node("a")])


def test_downstream_is_everything_that_needs_it_in_order() -> None:
    graph = build([node("a"), node("b", "a"), node("c", "b"), node("d", "a", "c"), node("e")])
    assert graph.downstream("a") == ["b", "c", "d"]
    assert graph.downstream("c") == ["d"]
    assert graph.downstream("e") == []


def _before(place: int) -> st.SearchStrategy[list[str]]:
    if not place:
        return st.just([])
    return st.lists(st.integers(0, place - 1).map(str), max_size=3, unique=True)


@st.composite
def acyclic(draw: st.DrawFn) -> list[Node]:
    size = draw(st.integers(0, 12))
    nodes = [node(str(i), *draw(_before(i)), after=tuple(draw(_before(i)))) for i in range(size)]
    return draw(st.permutations(nodes))


@given(acyclic())
def test_any_acyclic_graph_is_ordered(nodes: list[Node]) -> None:
    graph = build(nodes)
    place = {id: i for i, id in enumerate(graph.nodes)}
    assert set(place) == {n.id for n in nodes}
    assert all(place[need] < place[n.id] for n in nodes for need in (*n.needs, *n.after))
    for n in nodes:
        for below in graph.downstream(n.id):
            assert place[below] > place[n.id]
