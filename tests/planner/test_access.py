"""Who may do what: levels that include each other, rights of tokens, grants on single endpoints."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.access import Caller, Grant, Kind, Level, Right, grants_in, level_of
from servestate.planner.revision import canonical_json
from servestate.planner.spec.complete import complete
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.normal import normal_form

GIVEN = [Level.CAN_VIEW, Level.CAN_QUERY, Level.CAN_MANAGE]
ANN = Caller("ann@example.com", groups=frozenset({"search"}))
ROBOT = Caller("7f3a", Kind.SERVICE_PRINCIPAL)

LEVELS = st.sampled_from(GIVEN)
KINDS = st.sampled_from(list(Kind))
NAMES = st.sampled_from(["ann", "bob", "search", "7f3a"])
GRANTS = st.builds(Grant, LEVELS, KINDS, NAMES)
CALLERS = st.builds(
    Caller,
    NAMES,
    st.sampled_from([Kind.USER, Kind.SERVICE_PRINCIPAL]),
    st.frozensets(NAMES, max_size=2),
    st.frozensets(st.sampled_from(list(Right)), max_size=2),
)


def test_each_level_includes_the_ones_below() -> None:
    assert Level.NONE < Level.CAN_VIEW < Level.CAN_QUERY < Level.CAN_MANAGE


@pytest.mark.parametrize("level", GIVEN)
@pytest.mark.parametrize(
    ("kind", "name", "who"),
    [
        (Kind.USER, "ann@example.com", "ann"),
        (Kind.GROUP, "search", "ann"),
        (Kind.SERVICE_PRINCIPAL, "7f3a", "robot"),
        (Kind.USER, "7f3a", "nobody"),  # the name of a service principal is no user's
        (Kind.SERVICE_PRINCIPAL, "ann@example.com", "nobody"),
        (Kind.GROUP, "ann@example.com", "nobody"),  # nor is a user a group
        (Kind.USER, "search", "nobody"),
        (Kind.USER, "Ann@example.com", "nobody"),
    ],
)
def test_a_grant_counts_for_its_own_principal_alone(level: Level, kind: Kind, name: str, who: str) -> None:
    found = {"ann": level_of(ANN, [Grant(level, kind, name)])}
    found["robot"] = level_of(ROBOT, [Grant(level, kind, name)])
    assert found == {one: level if one == who else Level.NONE for one in ("ann", "robot")}


@pytest.mark.parametrize(
    ("right", "level"),
    [
        (Right.VIEW, Level.CAN_VIEW),
        (Right.QUERY, Level.CAN_QUERY),
        (Right.MANAGE, Level.CAN_MANAGE),
        (Right.ADMIN, Level.CAN_MANAGE),
        (Right.CREATE, Level.NONE),
        (Right.APPLY, Level.NONE),
    ],
)
def test_what_a_right_is_worth_on_an_endpoint_without_grants(right: Right, level: Level) -> None:
    assert level_of(Caller("ann", rights=frozenset({right})), ()) is level


@pytest.mark.parametrize(("has", "asked"), list(product(Right, Right)))
def test_a_right_is_itself_and_an_administrator_has_all(has: Right, asked: Right) -> None:
    assert Caller("ann", rights=frozenset({has})).may(asked) is (has in (asked, Right.ADMIN))


@given(CALLERS, st.lists(GRANTS, max_size=4), GRANTS)
def test_one_more_grant_never_takes_anything_away(caller: Caller, grants: list[Grant], more: Grant) -> None:
    before, after = level_of(caller, grants), level_of(caller, [*grants, more])
    assert before <= after <= max(before, more.level)


@given(CALLERS, st.lists(GRANTS, max_size=4))
def test_the_order_of_grants_does_not_matter(caller: Caller, grants: list[Grant]) -> None:
    assert level_of(caller, grants) is level_of(caller, grants[::-1])


@given(st.lists(GRANTS, max_size=4))
def test_who_has_no_right_and_no_grant_may_nothing(grants: list[Grant]) -> None:
    assert level_of(Caller("nobody"), grants) is Level.NONE


@given(st.lists(GRANTS, max_size=4))
def test_grants_are_read_back_from_a_block(grants: list[Grant]) -> None:
    written = [{"level": grant.level.name, str(grant.kind): grant.name} for grant in grants]
    form = normal_form(complete(Endpoint.model_validate({"name": "e", "permissions": written})))
    assert set(grants_in(canonical_json(form))) == set(grants)


def test_a_block_that_only_talks_of_permissions_grants_none() -> None:
    assert grants_in(canonical_json({"name": "e", "description": 'says "permissions"'})) == ()
    assert grants_in(canonical_json({"name": "e", "tags": {"permissions": ""}})) == ()
