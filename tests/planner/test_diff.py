"""Field differences: every leaf by itself, whatever else of the object changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.change import FieldDiff
from servestate.planner.diff import field_diffs


@pytest.mark.parametrize(
    ("before", "after", "paths"),
    [
        ({"tags": {"a": "1"}}, {"tags": {"b": "2"}}, ["tags.a", "tags.b"]),
        ({"a": 1, "b": 2, "c": 3}, {"x": 1, "y": 2, "z": 3}, ["a", "b", "c", "x", "y", "z"]),
        ({"args": ["x", "y"]}, {"args": ["x", "z"]}, ["args"]),
        ({"args": ["x"]}, {"args": ["x", {"k": 1}]}, ["args"]),
        ({"n": 1}, {"n": "1"}, ["n"]),
        ({"n": {"k": 1}}, {"n": 1}, ["n"]),
    ],
)
def test_maps_are_compared_key_by_key_and_lists_whole(before, after, paths: list[str]) -> None:
    """Also where the two share hardly a key, as an external entity and a local one do."""
    assert [field.path for field in field_diffs(before, after)] == paths


def test_a_field_has_both_values_and_says_whether_it_forces() -> None:
    assert field_diffs({"description": "", "x": 1}, {"description": "new", "x": 1}) == (
        FieldDiff("description", "", "new", forces=True),
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a", "b"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from("abcdef"), VALUES, max_size=4)


@given(OBJECTS, OBJECTS)
def test_there_is_a_difference_exactly_where_there_is_one(before, after) -> None:
    fields = field_diffs(before, after)
    assert bool(fields) == (before != after)
    assert [field.path for field in fields] == sorted({field.path for field in fields})
