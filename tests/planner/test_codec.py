"""Plans and records to JSON and back, and everything that must be refused on the way back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.codec import (
    FormatError,
    decode_instance,
    decode_plan,
    decode_record,
    encode_instance,
    encode_plan,
    encode_record,
)
from servestate.planner.plan import Plan
from servestate.planner.revision import canonical_json, digest
from tests.planner.blocks import NOTHING, bundle, endpoint, external, local
from tests.planner.gpu_worlds import host, on_gpus, surroundings
from tests.planner.rig import Site
from tests.planner.strategies import instances, plans, records

ONE = bundle(
    endpoint("chat", local("a", 60), external("b", 40), tags={"team": "x"}), endpoint("gone", local("x", 100))
)
TWO = bundle(endpoint("chat", local("a", 50, "B"), local("c", 50), protected=True))


def real_plans() -> list[Plan]:
    """Plans that hold every kind of step between them."""
    site = Site()
    found = [site.plan(ONE)]
    site.converge(ONE)
    site.world.crash(next(a for a in site.look().instances if a.endpoint == "gone"))
    site.table.text = None
    found.append(site.plan(TWO))
    found.append(site.plan(NOTHING, destroy=True))
    return found


@pytest.fixture
def real() -> list[Plan]:
    return real_plans()


def test_the_real_plans_hold_every_kind_of_step(real: list[Plan]) -> None:
    kinds = {step["kind"] for plan in real for step in json.loads(encode_plan(plan))["plan"]["steps"]}
    wanted = {"launch", "register", "await_ready", "publish_table", "withdraw", "rewrite_table", "drain"}
    assert kinds == wanted | {"stop", "forget"}


def test_real_plans_come_back_equal(real: list[Plan]) -> None:
    for plan in real:
        text = encode_plan(plan)
        assert decode_plan(text) == plan
        assert encode_plan(decode_plan(text)) == text
        assert json.loads(text)["digest"] == digest(body_of(plan))


@given(plans())
def test_any_plan_comes_back_equal(plan: Plan) -> None:
    assert decode_plan(encode_plan(plan)) == plan


@given(records())
def test_any_record_comes_back_equal(record) -> None:
    assert decode_record(encode_record(record)) == record


@given(instances())
def test_any_instance_comes_back_equal(instance) -> None:
    assert decode_instance(encode_instance(instance)) == instance


def test_a_plan_with_gpus_comes_back_equal_and_tells_where_what_goes() -> None:
    site = Site(surroundings=surroundings(host("h1", 1)))
    plan = site.plan(bundle(*(endpoint(n, on_gpus("a", 100, fraction=0.5)) for n in ("one", "two"))))
    assert decode_plan(encode_plan(plan)) == plan
    body = body_of(plan)
    assert body["capacity"] == [{"host": "h1", "total": 1, "before": 0, "peak": 1, "after": 1}]
    launches = [step for step in body["steps"] if step["kind"] == "launch"]
    assert [step["placement"] for step in launches] == [{"host": "h1", "gpus": ["0"], "fraction": 0.5}] * 2
    assert ["after" in step for step in launches] == [False, True]


def test_every_flipped_bit_of_a_plan_file_is_refused(real: list[Plan]) -> None:
    """T9. Each byte in turn, one bit of it; all eight bits of the bytes around the digest."""
    for plan in real:
        whole = encode_plan(plan).encode()
        for place in range(len(whole)):
            for bit in range(8) if place < 100 else (place % 8,):
                assert_refused(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])


def test_every_truncation_of_a_plan_file_is_refused(real: list[Plan]) -> None:
    whole = encode_plan(real[0]).encode()
    for size in range(len(whole) - 1):  # without its last newline it is still whole
        assert_refused(whole[:size])


def assert_refused(text: bytes) -> None:
    try:
        readable = text.decode()
    except UnicodeDecodeError:
        return  # the reader of the file refuses it before
    with pytest.raises(FormatError):
        decode_plan(readable)


def resealed(body: object, **beside: object) -> str:
    """A plan file of that body with the right digest, as a forger or another version would write it."""
    return canonical_json({"digest": digest(body), "plan": body, **beside}) + "\n"


def body_of(plan: Plan) -> dict:
    return json.loads(encode_plan(plan))["plan"]


DATA = ("before", "after", "old", "new")  # attributes: any key may stand in them


def objects(value: object, path: tuple = ()):
    """The path of every JSON object whose keys mean something."""
    if isinstance(value, dict):
        if "observed" not in path:
            yield path
        for key, below in value.items():
            if key not in DATA:
                yield from objects(below, (*path, key))
    if isinstance(value, list):
        for index, below in enumerate(value):
            yield from objects(below, (*path, index))


def at(value, path):
    for part in path:
        value = value[part]
    return value


def test_an_unknown_field_is_refused_wherever_it_stands(real: list[Plan]) -> None:
    for plan in real:
        for path in objects(body_of(plan)):
            body = body_of(plan)
            at(body, path)["surprise"] = 1
            with pytest.raises(FormatError):
                decode_plan(resealed(body))
        with pytest.raises(FormatError):
            decode_plan(resealed(body_of(plan), surprise=1))


def test_a_missing_field_is_refused_wherever_it_is_missing(real: list[Plan]) -> None:
    for plan in real:
        for path in objects(body_of(plan)):
            for key in at(body_of(plan), path):
                body = body_of(plan)
                del at(body, path)[key]
                with pytest.raises(FormatError):
                    decode_plan(resealed(body))


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, 1.5])
def test_another_format_version_is_refused_by_number(real: list[Plan], version: object) -> None:
    with pytest.raises(FormatError, match="format version"):
        decode_plan(resealed({**body_of(real[0]), "format_version": version}))


def test_steps_that_need_each_other_are_refused(real: list[Plan]) -> None:
    body = body_of(real[0])
    first = body["steps"][0]
    first["needs"] = [next(s["id"] for s in body["steps"] if first["id"] in s["needs"])]
    with pytest.raises(FormatError, match="circle"):
        decode_plan(resealed(body))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"plan": {}}',
        '{"digest": "x", "plan": 1}',
        '{"digest": "x", "plan": {"format_version": 2, "x": NaN}}',
        '{"digest": "x", "plan": {"format_version": 2, "x": "\\ud800"}}',
        '{"digest": "x", "plan": {"format_version": 2, "x": 1e999}}',
        "[" * 100_000,
        '{"plan":' * 100_000,
        '{"digest": "x", "plan": {"format_version": ' + "9" * 5000 + "}}",
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_plan_is_refused_with_a_format_error(text: str) -> None:
    for decode in (decode_plan, decode_record, decode_instance):
        with pytest.raises(FormatError):
            decode(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-9, 9) | st.text("ab", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_a_value_of_the_wrong_kind_is_refused_or_comes_back_as_it_is(data: st.DataObject) -> None:
    """Never another exception, and never a plan that would be written differently from what was read."""
    plan = data.draw(plans())
    body = body_of(plan)
    path = data.draw(st.sampled_from(list(objects(body))))
    key = data.draw(st.sampled_from(sorted(at(body, path)) or ["x"]))
    at(body, path)[key] = data.draw(VALUES)
    text = resealed(body)
    try:
        found = decode_plan(text)
    except FormatError:
        return
    assert encode_plan(found) == text


@given(instances(), st.data())
def test_a_damaged_record_of_the_store_is_refused_or_comes_back_as_it_is(instance, data) -> None:
    value = json.loads(encode_instance(instance))
    value[data.draw(st.sampled_from([*value, "surprise"]))] = data.draw(VALUES)
    try:
        decode_instance(json.dumps(value))
    except FormatError:
        return
