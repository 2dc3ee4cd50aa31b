"""Who serves an external model, as OpenTelemetry's conventions for generative AI call them
(`gen_ai.provider.name`, https://github.com/open-telemetry/semantic-conventions-genai)."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urlsplit

OURS, UNKNOWN = "servestate", "external"

# Hosts of their public APIs; the first that fits. Databricks is none of the conventions' well-known ones.
_PROVIDERS = tuple(
    (name, re.compile(rf"(?:.+\.)?(?:{host})"))
    for name, host in (
        ("openai", r"api\.openai\.com"),
        ("azure.ai.openai", r"openai\.azure\.(?:com|us|cn)"),
        (
            "azure.ai.inference",
            r"(?:services|inference\.ml|models)\.ai\.azure\.com|models\.inference\.ai\.azure\.com",
        ),
        ("anthropic", r"api\.anthropic\.com"),
        (
            "aws.bedrock",
            r"bedrock(?:-runtime|-mantle)?(?:-fips)?\.[a-z0-9-]+\.(?:amazonaws\.com(?:\.cn)?|api\.aws)",
        ),
        ("gcp.vertex_ai", r"(?:[a-z0-9-]+-)?aiplatform\.googleapis\.com"),
        ("gcp.gemini", r"generativelanguage\.googleapis\.com"),
        ("cohere", r"api\.cohere\.(?:com|ai)"),
        ("deepseek", r"api\.deepseek\.com"),
        ("groq", r"api\.groq\.com"),
        ("ibm.watsonx.ai", r"ml\.cloud\.ibm\.com"),
        ("mistral_ai", r"api\.mistral\.ai"),
        ("perplexity", r"api\.perplexity\.ai"),
        ("x_ai", r"api\.x\.ai"),
        ("databricks", r"cloud\.databricks\.(?:com|us)|azuredatabricks\.net|gcp\.databricks\.com"),
    )
)


@lru_cache(maxsize=1024)
def provider_at(url: str) -> str:
    """The provider whose API is at `url`; `external` for a host that says nothing of it."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    return next((name for name, hosts in _PROVIDERS if hosts.fullmatch(host)), UNKNOWN)
