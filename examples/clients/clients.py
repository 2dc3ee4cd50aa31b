"""Three clients of the serving API, as they come, against a running `servestate serve`.

Run it whole, or cell by cell in an editor that knows `# %%`. It reads DATABRICKS_HOST (the management
listener) and DATABRICKS_TOKEN, as the clients do, and ENDPOINT, an endpoint of completions. README.md says
how to start a site.
"""

# %% Where to, and what to ask
from __future__ import annotations

import importlib
import os
from types import ModuleType

HOST = os.environ.setdefault("DATABRICKS_HOST", "http://127.0.0.1:18081")
# Where the site declares no tokens, any will do; the clients ask for one.
TOKEN = os.environ.setdefault("DATABRICKS_TOKEN", "any-token")
ENDPOINT = os.environ.get("ENDPOINT", "multi-model")
QUESTION = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0.0}


def client(module: str, package: str) -> ModuleType | None:
    """The module, or None with a line that says why its part is skipped."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        print(f"\n{package}: skipped, {missing.name} is not installed (pip install {package})")
        return None


# %% databricks-sdk: what is there, a query, one entity past the split, an endpoint of our own
sdk = client("databricks.sdk", "databricks-sdk")
if sdk is not None:
    from databricks.sdk.service.serving import EndpointCoreConfigInput, ServedEntityInput

    w = sdk.WorkspaceClient()
    print(f"\ndatabricks-sdk at {HOST}")
    for one in w.serving_endpoints.list():
        print(f"  {one.name}: {one.state.ready.value}, {one.state.config_update.value}")

    found = w.serving_endpoints.get(ENDPOINT)
    for route in found.config.traffic_config.routes:
        print(f"  {ENDPOINT}/{route.served_entity_name}: {route.traffic_percentage} %")

    answer = w.serving_endpoints.query(ENDPOINT, **QUESTION)
    print(f"  {answer.served_model_name} says: {answer.choices[0].text!r}")

    entity = found.config.served_entities[-1]
    path = f"/serving-endpoints/{ENDPOINT}/served-models/{entity.name}/invocations"
    past = w.api_client.do("POST", path, body=QUESTION)
    print(f"  {entity.name}, asked past the split, says: {past['choices'][0]['text']!r}")

    same_model = ServedEntityInput(
        entity_name=entity.entity_name, entity_version=entity.entity_version, workload_size="Small"
    )
    config = EndpointCoreConfigInput(name="from-a-client", served_entities=[same_model])
    made = w.serving_endpoints.create_and_wait("from-a-client", config=config)
    try:
        answer = w.serving_endpoints.query("from-a-client", **QUESTION)
        print(f"  from-a-client, config {made.config.config_version}, says: {answer.choices[0].text!r}")
    finally:
        w.serving_endpoints.delete("from-a-client")
        print("  from-a-client is deleted")

# %% mlflow.deployments: the same, in MLflow's words, and a stream
deployments = client("mlflow.deployments", "mlflow-skinny")
if deployments is not None:
    deploy = deployments.get_deploy_client("databricks")
    print(f"\nmlflow.deployments at {HOST}")
    print(f"  endpoints: {', '.join(sorted(one['name'] for one in deploy.list_endpoints()))}")
    whole = deploy.predict(endpoint=ENDPOINT, inputs=QUESTION)
    print(f"  {ENDPOINT} says: {whole.choices[0]['text']!r}")
    parts = deploy.predict_stream(endpoint=ENDPOINT, inputs=QUESTION)
    texts = [choice.get("text", "") for part in parts for choice in part["choices"]]
    print(f"  streamed in {len(texts)} parts: {''.join(texts)!r}")

# %% openai: `model` is the name of an endpoint
openai = client("openai", "openai")
if openai is not None:
    with openai.OpenAI(api_key=TOKEN, base_url=f"{HOST}/serving-endpoints") as chat:
        print(f"\nopenai at {HOST}/serving-endpoints")
        print(f"  models: {', '.join(sorted(model.id for model in chat.models.list()))}")
        done = chat.completions.create(model=ENDPOINT, **QUESTION)
        print(f"  {ENDPOINT} says: {done.choices[0].text!r}")
        stream = chat.completions.create(model=ENDPOINT, stream=True, **QUESTION)
        words = [choice.text for event in stream for choice in event.choices]
        print(f"  streamed in {len(words)} parts: {''.join(words)!r}")
