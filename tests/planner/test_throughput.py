"""R18 to R20: provisioned throughput comes in the steps of its model, and only where the model has any."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.resolve import resolve
from servestate.planner.spec.complete import complete
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.request import load_request
from servestate.planner.spec.site import Optimization, Site
from servestate.planner.throughput import NOTHING_KNOWN, Problem, optimization_of, throughput_problems
from servestate.runtime.catalogue import foundation_models

TOKENS, UNITS = Optimization(throughput_chunk_size=970), Optimization(model_unit_chunk_size=50)
CATALOGUE = {"mistral_7b.*": TOKENS, "llama_.*": Optimization(throughput_chunk_size=1580)}
VERSION = {"engine": "command", "argv": ["serve", "{port}"]}
SITE = Site.model_validate(
    {
        "models": {
            "own.units": {"optimization": {"model_unit_chunk_size": 50}, "versions": {"1": VERSION}},
            "own.tokens": {"optimization": {"throughput_chunk_size": 100}, "versions": {"1": VERSION}},
            "own.plain": {"versions": {"1": VERSION}},
            "own.mistral_7b_tuned": {
                "optimization": {"throughput_chunk_size": 10},
                "versions": {"1": VERSION},
            },
        }
    }
)


def problems(*entities: dict[str, Any]) -> list[Problem]:
    named = [{"name": f"e{i}", "entity_version": "1", **entity} for i, entity in enumerate(entities)]
    endpoint = complete(Endpoint.model_validate({"name": "e", "config": {"served_entities": named}}))
    return list(throughput_problems(endpoint, SITE, CATALOGUE))


def asking(model: str, **amounts: int) -> dict[str, Any]:
    return {"entity_name": model, **amounts}


@given(st.integers(1, 40), st.integers(0, 40))
def test_multiples_of_the_step_are_fine(high: int, low: int) -> None:
    amounts = {"max_provisioned_throughput": 970 * (high + low), "min_provisioned_throughput": 970 * low}
    assert problems(asking("system.ai.mistral_7b_instruct", **amounts)) == []


@given(st.integers(1, 40_000).filter(lambda amount: amount % 970))
def test_anything_else_is_refused_with_the_nearest_steps(amount: int) -> None:
    (found,) = problems(asking("system.ai.mistral_7b_instruct", max_provisioned_throughput=amount))
    assert found.code == "SS205"
    low, high = (int(word) for word in found.fix.split() if word.isdigit())
    assert low % 970 == high % 970 == 0
    assert high - low == 970
    assert low <= max(970, amount) < high or (low, high) == (970, 1940)
    assert found.path == ("config", "served_entities", 0, "max_provisioned_throughput")


@pytest.mark.parametrize(
    "field", ["min_provisioned_throughput", "max_provisioned_throughput", "provisioned_model_units"]
)
def test_a_model_without_steps_has_none_to_provision(field: str) -> None:
    (found,) = problems(asking("own.plain", **{field: 100}))
    assert found.code == "SS206"
    assert found.what.startswith("Model is not eligible for provisioned throughput: ")
    assert "servestate.models.own.plain.optimization" in found.fix


def test_units_have_a_step_of_their_own() -> None:
    assert problems(asking("own.units", provisioned_model_units=150)) == []
    (found,) = problems(asking("own.units", provisioned_model_units=70))
    assert (found.code, found.fix) == ("SS205", "use 50 or 100")
    (found,) = problems(asking("own.units", max_provisioned_throughput=970))
    assert found.code == "SS206"  # it is sold by units, not by tokens


def test_units_whose_step_nobody_knows_are_taken_as_they_are() -> None:
    assert problems(asking("own.tokens", provisioned_model_units=7)) == []


def test_what_the_site_says_counts_before_the_catalogue() -> None:
    assert problems(asking("own.mistral_7b_tuned", max_provisioned_throughput=20)) == []
    assert (
        optimization_of("own.mistral_7b_tuned", SITE, CATALOGUE)
        == SITE.models["own.mistral_7b_tuned"].optimization
    )


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("mistral_7b_instruct", True),
        ("a.b.Mistral_7B_Instruct", True),  # in whatever case
        ("a.b.my_mistral_7b", False),  # the pattern is of the whole name
        ("mistral_7b.other", False),  # and of the last part alone
        ("own.plain", False),  # the site knows it, and nothing of its throughput
    ],
)
def test_who_is_in_the_catalogue(model: str, known: bool) -> None:
    assert (optimization_of(model, SITE, CATALOGUE) is not None) is known


def test_every_entity_and_every_field_is_looked_at() -> None:
    found = problems(
        asking("own.tokens", min_provisioned_throughput=150, max_provisioned_throughput=250),
        asking("own.tokens", max_provisioned_throughput=100),
        asking("own.plain", max_provisioned_throughput=100),
    )
    assert [(one.code, one.path[2], one.path[3]) for one in found] == [
        ("SS205", 0, "min_provisioned_throughput"),
        ("SS205", 0, "max_provisioned_throughput"),
        ("SS206", 2, "max_provisioned_throughput"),
    ]


def test_who_asks_for_none_needs_none() -> None:
    assert problems(asking("own.plain"), asking("nobody.knows.it")) == []


def test_an_amount_of_nothing_is_on_a_step() -> None:
    amounts = {"min_provisioned_throughput": 0, "max_provisioned_throughput": 100}
    assert problems(asking("own.tokens", **amounts)) == []


def test_resolving_refuses_what_is_on_no_step() -> None:
    entity = {**asking("own.tokens", max_provisioned_throughput=150), "entity_version": "1"}
    desired = load_request({"name": "e", "config": {"served_entities": [entity]}}, SITE, "api", "e")
    with pytest.raises(InvalidInput) as caught:
        resolve(desired, frozenset({"process"}), NOTHING_KNOWN)
    (found,) = caught.value.diagnostics
    assert found.code == "SS205"
    assert found.what.startswith("max_provisioned_throughput of ")


def test_the_catalogue_that_comes_along_is_one() -> None:
    known = foundation_models()
    assert all(one.throughput_chunk_size or one.model_unit_chunk_size for one in known.values())
    for model in ("system.ai.mistral_7b_instruct_v0_1", "system.ai.mixtral_8x7b_instruct_v0_1"):
        assert optimization_of(model, Site(), known) is not None
