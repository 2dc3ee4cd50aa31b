"""The life of endpoints as sequences of calls: after every call each endpoint is as a model of the serving
API says, made of dictionaries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.api.guarded import Guarded, guarded_site
from tests.cli.harness import until
from tests.clients.harness import endpoint, external, routes

NAMES = st.sampled_from(("one", "two", "three"))
ENTITIES = st.lists(st.sampled_from(("a", "b", "c")), min_size=1, max_size=3, unique=True)
KEYS = st.sampled_from(("k", "l", "m"))
LEVELS = st.sampled_from(("CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"))
PEOPLE = st.sampled_from(("x@example.com", "y@example.com"))
ADMIN_LINE = {"admin@example.com": "CAN_MANAGE"}


@dataclass
class Endpoint:
    """What the model knows of one."""

    version: int
    shares: dict[str, int]
    tags: dict[str, str] = field(default_factory=dict)
    grants: dict[str, str] = field(default_factory=lambda: dict(ADMIN_LINE))
    id: str = ""


def even(names: list[str]) -> dict[str, int]:
    """Shares that add up to 100."""
    first, *others = names
    rest = {name: 100 // len(names) for name in others}
    return {first: 100 - sum(rest.values()), **rest}


class Life(RuleBasedStateMachine):
    """The calls, and the model that they are compared with."""

    site: ClassVar[Guarded]

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, Endpoint] = {}
        self.ids: set[str] = set()

    def config(self, names: list[str]) -> dict[str, Any]:
        """Entities of these names, and their even shares."""
        entities = [external(name, self.site.far) for name in names]
        return {"served_entities": entities, "traffic_config": routes(**even(names))}

    def call(self, verb: str, path: str, body: Any, status: int) -> Any:
        """One request, which must be answered so; the JSON of the answer."""
        got = self.site.say(verb, path, body)
        assert got.status == status, (verb, path, got.body)
        return got.json

    def permissions(self, verb: str, name: str, body: Any) -> Any:
        """One request of the permissions API."""
        path = f"/api/2.0/permissions/serving-endpoints/{self.model[name].id}"
        got = self.site.ask(verb, path, body=body)
        assert got.status == 200, got.body
        return got.json

    @rule(name=NAMES, names=ENTITIES, bare=st.booleans())
    def create(self, name: str, names: list[str], bare: bool) -> None:
        """With a config, or without."""
        body = {"name": name} if bare else {**endpoint(name), "config": self.config(names)}
        made = self.call("POST", "", body, 409 if name in self.model else 200)
        if name not in self.model:
            self.model[name] = Endpoint(0 if bare else 1, {} if bare else even(names), id=made["id"])
            assert made["id"] not in self.ids
            self.ids.add(made["id"])

    @rule(name=NAMES, names=ENTITIES)
    def update(self, name: str, names: list[str]) -> None:
        """To other entities."""
        self.call("PUT", f"/{name}/config", self.config(names), 200 if name in self.model else 404)
        if name in self.model:
            one = self.model[name]
            one.version += one.shares != even(names)
            one.shares = even(names)

    @rule(name=NAMES, names=ENTITIES)
    def update_wrongly(self, name: str, names: list[str]) -> None:
        """To shares that do not add up: nothing changes."""
        config = self.config(names)
        config["traffic_config"]["routes"][0]["traffic_percentage"] = 101
        self.call("PUT", f"/{name}/config", config, 400 if name in self.model else 404)

    @rule(name=NAMES, added=st.dictionaries(KEYS, KEYS), deleted=st.lists(KEYS))
    def tag(self, name: str, added: dict[str, str], deleted: list[str]) -> None:
        """Tags added and deleted at once."""
        body = {"add_tags": [{"key": k, "value": v} for k, v in added.items()], "delete_tags": deleted}
        self.call("PATCH", f"/{name}/tags", body, 200 if name in self.model else 404)
        if name in self.model:
            tags = self.model[name].tags
            kept = {key: value for key, value in tags.items() if key not in deleted}
            self.model[name].tags = kept | added

    @rule(name=NAMES, person=PEOPLE, level=LEVELS, merge=st.booleans())
    def grant(self, name: str, person: str, level: str, merge: bool) -> None:
        """One more line, or only this one."""
        if name not in self.model:
            return
        line = f'{{"permission_level": "{level}", "user_name": "{person}"}}'
        body = f'{{"access_control_list": [{line}]}}'.encode()
        self.permissions("PATCH" if merge else "PUT", name, body)
        one = self.model[name]
        one.grants = {**(one.grants if merge else {}), person: level}

    @rule(name=NAMES)
    def cancel(self, name: str) -> None:
        """Nothing is in progress: these entities are ready at once."""
        self.call("POST", f"/{name}/cancel-update", None, 409 if name in self.model else 404)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        """And its name is free."""
        self.call("DELETE", f"/{name}", None, 200 if name in self.model else 404)
        self.model.pop(name, None)

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        """Every endpoint, and the list of them."""
        listed = {one["name"] for one in self.site.say("GET", "", None).json["endpoints"]}
        assert listed - {"shared", "hidden", "own"} == {*self.model}
        for name, one in self.model.items():
            until(lambda name=name: self._settled(name), f"{name} is settled", 10)
            shown = self.call("GET", f"/{name}", None, 200)
            assert shown["id"] == one.id
            assert "pending_config" not in shown
            assert shown["state"]["ready"] == ("READY" if one.shares else "NOT_READY")
            config = shown.get("config", {"config_version": 0, "traffic_config": {"routes": []}})
            assert config["config_version"] == one.version
            shares = {
                r["served_entity_name"]: r["traffic_percentage"] for r in config["traffic_config"]["routes"]
            }
            assert shares == one.shares
            assert {tag["key"]: tag["value"] for tag in shown["tags"]} == one.tags
            lines = self.permissions("GET", name, b"")["access_control_list"]
            granted = {line["user_name"]: line["all_permissions"][0]["permission_level"] for line in lines}
            assert granted == one.grants

    def _settled(self, name: str) -> bool:
        update = self.call("GET", f"/{name}", None, 200)["state"]["config_update"]
        assert update in ("IN_PROGRESS", "NOT_UPDATING")
        return bool(update == "NOT_UPDATING")

    def teardown(self) -> None:
        """The next sequence begins with nothing."""
        for name in self.model:
            self.call("DELETE", f"/{name}", None, 200)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A site of its own."""
    with guarded_site(tmp_path_factory.mktemp("lively")) as site:
        yield site


def live(site: Guarded, sequences: int, steps: int) -> None:
    """So many sequences of calls, always the same ones."""
    Life.site = site
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Life,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert "Traceback" not in site.log


def test_a_few_lives(lively: Guarded) -> None:
    live(lively, 8, 15)


@pytest.mark.slow
def test_many_lives(lively: Guarded) -> None:
    live(lively, 25, 30)
