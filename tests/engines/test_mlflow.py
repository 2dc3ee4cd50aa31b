"""Real MLflow servers behind the router, asked with every body that the serving API has for custom models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines.site import READY_TIMEOUT_S, Environment, Site, endpoint, entity

pytestmark = pytest.mark.engines

COLUMNS = ["x", "y"]
ROWS = [[1.0, 2.0], [30.0, 40.0]]
BODIES: dict[str, Any] = {
    "dataframe_split": {"columns": COLUMNS, "data": ROWS},
    "dataframe_records": [dict(zip(COLUMNS, row, strict=True)) for row in ROWS],
    "instances": ROWS,
    "inputs": ROWS,
}


@pytest.fixture(scope="module")
def served(site: Site, engines: Environment, models: Path) -> Site:
    """Two models of MLflow, applied and routed: `adder` behind two entities, `classifier` behind one."""
    engines.make("save_models.py", str(models))
    catalogue = {
        f"demo.{name}": {
            "versions": {
                "1": {
                    "engine": "mlflow",
                    "source": f"file://{models / name}",
                    "python": str(engines.python),
                    "mlflow": {"workers": 1},
                    "ready_timeout_s": READY_TIMEOUT_S,
                }
            }
        }
        for name in ("adder", "classifier")
    }
    adders = [entity("current", "demo.adder"), entity("challenger", "demo.adder")]
    classifier = endpoint("classifier", [entity("only", "demo.classifier")], {"only": 100})
    adder = endpoint("adder", adders, {"current": 75, "challenger": 25})
    site.write(catalogue, {"adder": adder, "classifier": classifier})
    site.run("apply", "--auto-approve")
    assert "No changes" in site.run("plan")
    site.serve()
    return site


def invoke(site: Site, name: str, body: object) -> httpx.Response:
    headers = {"Authorization": "Bearer any"}
    return httpx.post(
        f"{site.url}/serving-endpoints/{name}/invocations", json=body, headers=headers, timeout=60
    )


@pytest.mark.parametrize("kind", BODIES)
def test_every_body_of_a_custom_model(served: Site, kind: str) -> None:
    found = invoke(served, "adder", {kind: BODIES[kind]})
    assert found.status_code == 200, found.text
    assert found.json() == {"predictions": [3.0, 70.0]}
    assert found.headers["served-model-name"] in ("current", "challenger")


@pytest.mark.parametrize("kind", ["dataframe_split", "dataframe_records"])
def test_a_model_with_a_signature(served: Site, kind: str) -> None:
    found = invoke(served, "classifier", {kind: BODIES[kind]})
    assert found.status_code == 200, found.text
    assert found.json() == {"predictions": [0, 1]}


def test_the_split_holds_for_custom_models(served: Site) -> None:
    asked = (invoke(served, "adder", {"inputs": ROWS}) for _ in range(8))
    assert Counter(answer.headers["served-model-name"] for answer in asked) == {"current": 6, "challenger": 2}


def test_one_entity_by_name(served: Site) -> None:
    found = invoke(served, "adder/served-models/challenger", {"inputs": ROWS})
    assert found.status_code == 200
    assert found.headers["served-model-name"] == "challenger"


def test_columns_that_the_signature_does_not_know(served: Site) -> None:
    """The engine's 400 stays one, with its reason in the serving API's form."""
    found = invoke(served, "classifier", {"dataframe_split": {"columns": ["z"], "data": [[1.0]]}})
    assert found.status_code == 400
    assert set(found.json()) >= {"error_code", "message"}
    assert "x" in found.json()["message"]


def test_several_kinds_of_body_at_once(served: Site) -> None:
    found = invoke(served, "adder", {"inputs": ROWS, "instances": ROWS})
    assert found.status_code == 400
    assert set(found.json()) >= {"error_code", "message"}


def test_a_body_for_a_language_model_is_refused(served: Site) -> None:
    found = invoke(served, "adder", {"messages": [{"role": "user", "content": "Hello"}]})
    assert found.status_code in (400, 404), found.text
    assert set(found.json()) >= {"error_code", "message"}
