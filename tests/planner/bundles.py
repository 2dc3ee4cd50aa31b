"""Random valid bundles as YAML text, and other spellings of the same bundle."""

from __future__ import annotations

import random
from typing import Any

import yaml
from hypothesis import strategies as st

Block = dict[str, Any]

_MODEL = "demo.chat.small"
_VERSIONS = ("1", "2", "3")
_SITE: Block = {
    "models": {
        _MODEL: {
            "task": "llm/v1/chat",
            "versions": {
                v: {"engine": "command", "argv": ["serve", "{port}", f"v{v}.bin"]} for v in _VERSIONS
            },
        }
    }
}
_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=8)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever holds a digit: PyYAML writes 0E0 bare, which YAML 1.2 takes for a number."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(character.isdigit() for character in text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


@st.composite
def bundles(draw: st.DrawFn) -> Block:
    """A bundle as plain values."""
    names = draw(st.lists(st.sampled_from(["chat", "embed", "multi-model"]), max_size=3, unique=True))
    endpoints = {name.replace("-", "_"): draw(_endpoints(name)) for name in names}
    site = {
        **_SITE,
        "overrides": {name: draw(_OVERRIDES) for name in names if draw(st.booleans())},
        "traffic": {name: draw(_TRAFFIC) for name in names if draw(st.booleans())},
    }
    return {
        "bundle": {"name": "shop"},
        "servestate": site,
        "resources": {"model_serving_endpoints": endpoints},
    }


_TRAFFIC = st.fixed_dictionaries(
    {},
    optional={
        "split": st.sampled_from(["exact", "random"]),
        "replicas": st.just("prefix_hash"),
        "deadline_s": st.sampled_from([0, 30, "1m"]),
        "concurrency": st.integers(0, 4),
        "limits": st.sampled_from(["enforce", "shadow"]),
        "fallback": st.fixed_dictionaries({"after_send": st.booleans()}),
        "inference_table": st.fixed_dictionaries({"format": st.sampled_from(["jsonl", "parquet"])}),
    },
)
_OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.sampled_from(["surge", "recreate"]),
        "drain_timeout_s": st.sampled_from([0, 5, "1m"]),
        "args": st.lists(st.sampled_from(["--fast", "--small"]), max_size=2),
    },
)


@st.composite
def _endpoints(draw: st.DrawFn, name: str) -> Block:
    external = draw(st.booleans())
    entities = draw(
        st.lists(
            _EXTERNALS if external else _LOCALS,
            min_size=1,
            max_size=3,
            unique_by=lambda entity: entity["name"],
        )
    )
    weights = _split(draw, len(entities))
    routes = [
        {"served_entity_name": e["name"], "traffic_percentage": w}
        for e, w in zip(entities, weights, strict=True)
    ]
    block: Block = {
        "name": name,
        "config": {"served_entities": entities, "traffic_config": {"routes": routes}},
    }
    tags = draw(st.dictionaries(st.sampled_from(["team", "tier", "cost"]), _TEXT, max_size=3))
    if tags:
        block["tags"] = [{"key": key, "value": value} for key, value in tags.items()]
    if draw(st.booleans()):
        block["description"] = draw(_TEXT)
    return block


def _split(draw: st.DrawFn, count: int) -> list[int]:
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=count - 1, max_size=count - 1)))
    return [high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True)]


_LOCALS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["current", "challenger", "canary"]),
        "entity_name": st.just(_MODEL),
        "entity_version": st.sampled_from(_VERSIONS),
        "workload_size": st.sampled_from(["Small", "Large"]),
    },
    optional={"environment_vars": st.dictionaries(st.sampled_from(["LEVEL", "KEY"]), _TEXT, max_size=2)},
)
_EXTERNALS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["openai", "backup", "third"]),
        "external_model": st.fixed_dictionaries(
            {
                "provider": st.just("openai"),
                "name": st.sampled_from(["gpt-4o", "gpt-4o-mini"]),
                "task": st.just("llm/v1/chat"),
                "openai_config": st.just({"openai_api_key": "{{secrets/keys/openai}}"}),
            }
        ),
    }
)


def text_of(bundle: Block) -> str:
    """The bundle as YAML."""
    return yaml.dump(bundle, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def other_spelling(bundle: Block, rng: random.Random) -> str:
    """The same bundle, written by somebody else: keys, tags, routes and entities in another order, numbers as
    text, other layout, comments."""
    shuffled = _shuffled(bundle, rng)
    layout = rng.choice([None, False])
    text = yaml.dump(
        shuffled, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=layout, width=60
    )
    lines = [f"# {rng.random()}", ""]
    for line in text.splitlines():
        lines += [line] if line[:1] in (" ", "-", "") else ["", "# a comment", line]
    return "\n".join(lines) + "\n\n"


_ORDERLESS = ("tags", "routes", "served_entities")


def _shuffled(value: Any, rng: random.Random, key: str = "") -> Any:
    if isinstance(value, dict):
        items = [(k, _shuffled(v, rng, k)) for k, v in value.items()]
        rng.shuffle(items)
        return dict(items)
    if isinstance(value, list):
        found = [_shuffled(item, rng) for item in value]
        if key in _ORDERLESS:
            rng.shuffle(found)
        return found
    if key == "traffic_percentage":
        return rng.choice([value, str(value)])
    if key == "entity_version":
        return rng.choice([value, int(value)])
    return value
