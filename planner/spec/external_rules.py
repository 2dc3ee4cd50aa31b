"""Rules of external models: the provider's config object, its credential, and what may be sent over HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel

from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.external import CONFIG_OF, ExternalModel
from servestate.planner.spec.hosts import host_of, is_never_reached
from servestate.planner.spec.report import Report

SECRET_REFERENCE = re.compile(r"\{\{secrets/[^/{}\s]+/[^/{}\s]+\}\}\Z")
REFERENCE_FORM = "{{secrets/SCOPE/KEY}}"

# By provider: the credentials one of which must be given; each is a path inside the config object.
_REQUIRED: dict[str, tuple[tuple[str, ...], ...]] = {
    "ai21labs": (("ai21labs_api_key",),),
    "anthropic": (("anthropic_api_key",),),
    "cohere": (("cohere_api_key",),),
    "databricks-model-serving": (("databricks_api_token",),),
    "google-cloud-vertex-ai": (("private_key",),),
    "openai": (("openai_api_key",), ("microsoft_entra_client_secret",)),
    "palm": (("palm_api_key",),),
    "amazon-bedrock": (("aws_access_key_id",), ("instance_profile_arn",), ("uc_service_credential_name",)),
}
_URLS = {"openai_api_base", "custom_provider_url", "databricks_workspace_url", "cohere_api_base"}
_URL = re.compile(r"https?://[A-Za-z0-9_.\-\[\]:]+(?:/[!-~]*)?\Z")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}\Z")
_HEADER_VALUE = re.compile(r"[!-~]+\Z")

At = tuple[str | int, ...]


def externals(endpoint: Endpoint) -> Iterator[tuple[ExternalModel, At]]:
    """The external models of `endpoint` with their paths."""
    for index, entity in enumerate(endpoint.entities):
        if entity.external_model is not None:
            yield entity.external_model, ("config", "served_entities", index, "external_model")


def provider_config(endpoint: Endpoint, report: Report) -> None:
    """R23: exactly the config object of the provider."""
    for model, at in externals(endpoint):
        wanted = CONFIG_OF[model.provider]
        for field in CONFIG_OF.values():
            if field != wanted and getattr(model, field) is not None:
                what = f'{field} does not belong to the provider "{model.provider}"'
                report.error("SS114", what, f"remove it, or use {wanted}", *at, field)
        config = getattr(model, wanted)
        if config is None:
            what = f'the provider "{model.provider}" needs {wanted}'
            report.error("SS114", what, f"add {wanted} with its keys", *at)
        elif model.custom_provider_config is not None:
            _one_kind_of_auth(model, report, at)


def _one_kind_of_auth(model: ExternalModel, report: Report, at: At) -> None:
    custom = model.custom_provider_config
    if custom is not None and custom.bearer_token_auth is not None and custom.api_key_auth is not None:
        what = "custom_provider_config has both bearer_token_auth and api_key_auth"
        report.error("SS114", what, "keep one of them", *at, "custom_provider_config")


def secrets_by_reference(endpoint: Endpoint, report: Report) -> None:
    """R23, R24: credentials are references. Written out they would be in version control."""
    for model, at in externals(endpoint):
        config = getattr(model, CONFIG_OF[model.provider])
        if config is not None:
            _no_secret_inline(config, report, (*at, CONFIG_OF[model.provider]))


def _no_secret_inline(config: BaseModel, report: Report, at: At) -> None:
    fields = type(config).model_fields
    for field, value in config:
        if isinstance(value, BaseModel):
            _no_secret_inline(value, report, (*at, field))
        elif value and field.endswith("_plaintext"):
            plain = field.removesuffix("_plaintext")
            what = f"{field} puts a secret into this file, and with it into version control"
            report.error(
                "SS115", what, f"remove it, renew the secret, and write {plain}: {_quoted()}", *at, field
            )
        elif value and f"{field}_plaintext" in fields and not SECRET_REFERENCE.match(value):
            what = f"{field} is not a reference to a secret"
            report.error(
                "SS115", what, f"write {field}: {_quoted()}; its value stays outside this file", *at, field
            )


def _quoted() -> str:
    return f'"{REFERENCE_FORM}"'


def secret_given(endpoint: Endpoint, report: Report) -> None:
    """R23: the credential of the provider is there."""
    for model, at in externals(endpoint):
        field = CONFIG_OF[model.provider]
        config, required = getattr(model, field), _REQUIRED.get(model.provider, ())
        if config is None or not required or any(_has(config, name[0]) for name in required):
            continue
        names = " or ".join(name[0] for name in required)
        report.error("SS116", f"{field} has no {names}", f"add {required[0][0]}: {_quoted()}", *at, field)


def _has(config: BaseModel, field: str) -> bool:
    return bool(getattr(config, field) or getattr(config, f"{field}_plaintext", ""))


def sendable(endpoint: Endpoint, report: Report) -> None:
    """URLs are http or https and hold no credentials; what becomes a header cannot end it. The values are not
    shown: a URL may hold a password."""
    for model, at in externals(endpoint):
        field = CONFIG_OF[model.provider]
        config = getattr(model, field)
        if config is None:
            continue
        for name in type(config).model_fields.keys() & _URLS:
            url = getattr(config, name)
            needed = type(config).model_fields[name].is_required()
            if (url or needed) and not _URL.match(url):
                what = f"{name} is not a URL that requests can be sent to"
                report.error(
                    "SS117", what, "write http(s)://HOST[:PORT][/PATH], without a password", *at, field, name
                )
        _headers(model, report, (*at, field))


def reachable(endpoint: Endpoint, report: Report) -> None:
    """No URL leads to where clouds keep the credentials of their machines."""
    for model, at in externals(endpoint):
        for name, url in urls_of(model):
            if is_never_reached(host_of(url)):
                what = f"{name} is a link-local address, which is never reached"
                report.error(
                    "SS129", what, "name the host of the model", *at, CONFIG_OF[model.provider], name
                )


def urls_of(model: ExternalModel) -> Iterator[tuple[str, str]]:
    """Where requests of an external model are sent to, each with the name of its field."""
    config = getattr(model, CONFIG_OF[model.provider])
    for name in _URLS:
        if url := getattr(config, name, ""):
            yield name, url


def _headers(model: ExternalModel, report: Report, at: At) -> None:
    openai, custom = model.openai_config, model.custom_provider_config
    if (
        openai is not None
        and openai.openai_organization
        and not _HEADER_VALUE.match(openai.openai_organization)
    ):
        what = "openai_organization cannot be sent in an HTTP header"
        report.error("SS117", what, "use printable ASCII without spaces", *at, "openai_organization")
    key = custom.api_key_auth if custom is not None else None
    if key is not None and not _HEADER_NAME.match(key.key):
        what = "the key of api_key_auth cannot be the name of an HTTP header"
        report.error("SS117", what, 'use a name such as "x-api-key"', *at, "api_key_auth", "key")


def same_task(endpoint: Endpoint, report: Report) -> None:
    """R3: all external models of an endpoint have one task."""
    tasks = sorted({model.task for model, _ in externals(endpoint)})
    if len(tasks) > 1:
        what = f'the external models of "{endpoint.name}" have different tasks'
        fix = "the task type of all external models within an endpoint must be the same; split the endpoint"
        report.error("SS124", what, fix, "config", "served_entities", detail=", ".join(tasks))
