"""External models: provider block of the serving API -> where to post and which credential to send."""

from __future__ import annotations

from servestate.planner.launch import ExternalSpec
from servestate.planner.spec.external import ExternalModel

OPENAI_BASE = "https://api.openai.com/v1"
# The path under an OpenAI-style base URL that serves each task.
TASK_PATHS = {
    "llm/v1/chat": "/chat/completions",
    "llm/v1/completions": "/completions",
    "llm/v1/embeddings": "/embeddings",
}


def external_spec(model: ExternalModel) -> ExternalSpec:
    """The spec of a supported external model. The rules have refused other providers and missing parts."""
    if model.openai_config is not None:
        openai = model.openai_config
        organization = openai.openai_organization
        return ExternalSpec(
            kind=model.provider,
            url=_task_url(openai.openai_api_base or OPENAI_BASE, model.task),
            model=model.name,
            task=model.task,
            secret=openai.openai_api_key,
            headers=(("openai-organization", organization),) if organization else (),
        )
    if model.databricks_model_serving_config is not None:
        workspace = model.databricks_model_serving_config
        url = f"{workspace.databricks_workspace_url.rstrip('/')}/serving-endpoints/{model.name}/invocations"
        secret = workspace.databricks_api_token
        return ExternalSpec(kind=model.provider, url=url, model=model.name, task=model.task, secret=secret)
    return _custom(model)


def _custom(model: ExternalModel) -> ExternalSpec:
    custom = model.custom_provider_config
    assert custom is not None, "rule R23 lets only the supported providers through"
    url = _task_url(custom.custom_provider_url, model.task)
    if custom.api_key_auth is not None:
        key = custom.api_key_auth
        return ExternalSpec(
            kind=model.provider,
            url=url,
            model=model.name,
            task=model.task,
            auth_header=key.key.lower(),
            auth_prefix="",
            secret=key.value,
        )
    bearer = custom.bearer_token_auth
    secret = bearer.token if bearer is not None else ""
    return ExternalSpec(kind=model.provider, url=url, model=model.name, task=model.task, secret=secret)


def _task_url(base: str, task: str) -> str:
    """`base` itself where it already ends in the task's path, else with the path added. No source settles
    which of the two a custom URL is, so both work."""
    path = TASK_PATHS[task]
    base = base.rstrip("/")
    return base if base.endswith(path) else base + path
