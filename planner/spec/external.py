"""External models: one config class per provider (serving-API objects; field names are the API's).

Every credential `K` may be written as `K`, a `{{secrets/SCOPE/KEY}}` reference, or as `K_plaintext`. The
second is parsed only so that it can be refused with its own message: YAML lives in git.
"""

from __future__ import annotations

from typing import Literal

from servestate.planner.spec.fields import Schema

ProviderName = Literal[
    "ai21labs",
    "amazon-bedrock",
    "anthropic",
    "cohere",
    "custom",
    "databricks-model-serving",
    "google-cloud-vertex-ai",
    "openai",
    "palm",
]

CONFIG_OF: dict[str, str] = {
    "ai21labs": "ai21labs_config",
    "amazon-bedrock": "amazon_bedrock_config",
    "anthropic": "anthropic_config",
    "cohere": "cohere_config",
    "custom": "custom_provider_config",
    "databricks-model-serving": "databricks_model_serving_config",
    "google-cloud-vertex-ai": "google_cloud_vertex_ai_config",
    "openai": "openai_config",
    "palm": "palm_config",
}
"""The config object that belongs to each provider (R23)."""


class OpenAiConfig(Schema):
    """`openai_api_base` defaults to the public OpenAI URL; the Azure fields are parsed and refused."""

    openai_api_key: str = ""
    openai_api_key_plaintext: str = ""
    openai_api_base: str = ""
    openai_organization: str = ""
    openai_api_type: str = ""
    openai_api_version: str = ""
    openai_deployment_name: str = ""
    microsoft_entra_client_id: str = ""
    microsoft_entra_tenant_id: str = ""
    microsoft_entra_client_secret: str = ""
    microsoft_entra_client_secret_plaintext: str = ""


class BearerTokenAuth(Schema):
    """Sends `Authorization: Bearer <token>`."""

    token: str = ""
    token_plaintext: str = ""


class ApiKeyAuth(Schema):
    """Sends header `key` with the value of the secret."""

    key: str
    value: str = ""
    value_plaintext: str = ""


class CustomProviderConfig(Schema):
    """Any server with an OpenAI-shaped API. At most one kind of auth."""

    custom_provider_url: str
    bearer_token_auth: BearerTokenAuth | None = None
    api_key_auth: ApiKeyAuth | None = None


class DatabricksModelServingConfig(Schema):
    """Another serving workspace, or another servestate."""

    databricks_workspace_url: str
    databricks_api_token: str = ""
    databricks_api_token_plaintext: str = ""


class AnthropicConfig(Schema):
    """Parsed; not supported yet."""

    anthropic_api_key: str = ""
    anthropic_api_key_plaintext: str = ""


class CohereConfig(Schema):
    """Parsed; not supported yet."""

    cohere_api_key: str = ""
    cohere_api_key_plaintext: str = ""
    cohere_api_base: str = ""


class AmazonBedrockConfig(Schema):
    """Parsed; not supported yet. `bedrock_provider` is compared without case (N11)."""

    aws_region: str
    bedrock_provider: str
    aws_access_key_id: str = ""
    aws_access_key_id_plaintext: str = ""
    aws_secret_access_key: str = ""
    aws_secret_access_key_plaintext: str = ""
    instance_profile_arn: str = ""
    uc_service_credential_name: str = ""


class GoogleCloudVertexAiConfig(Schema):
    """Parsed; not supported yet."""

    project_id: str
    region: str
    private_key: str = ""
    private_key_plaintext: str = ""


class Ai21LabsConfig(Schema):
    """Parsed; not supported yet."""

    ai21labs_api_key: str = ""
    ai21labs_api_key_plaintext: str = ""


class PalmConfig(Schema):
    """Parsed; not supported yet."""

    palm_api_key: str = ""
    palm_api_key_plaintext: str = ""


class ExternalModel(Schema):
    """A model that somebody else runs. Exactly the config object of `provider` is set (R23)."""

    provider: ProviderName
    name: str
    task: str
    ai21labs_config: Ai21LabsConfig | None = None
    amazon_bedrock_config: AmazonBedrockConfig | None = None
    anthropic_config: AnthropicConfig | None = None
    cohere_config: CohereConfig | None = None
    custom_provider_config: CustomProviderConfig | None = None
    databricks_model_serving_config: DatabricksModelServingConfig | None = None
    google_cloud_vertex_ai_config: GoogleCloudVertexAiConfig | None = None
    openai_config: OpenAiConfig | None = None
    palm_config: PalmConfig | None = None
