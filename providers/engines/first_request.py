"""The first request to an engine with the OpenAI paths, by task. Pure."""

from __future__ import annotations

from servestate.planner.launch import LaunchSpec
from servestate.providers.engines.engine import FirstRequest

_PROMPT = "Hello"


def openai_request(spec: LaunchSpec) -> FirstRequest | None:
    """One token, or one embedding. A task that is not known, or none, says nothing about what it answers."""
    match spec.task:
        case "llm/v1/chat":
            messages = [{"role": "user", "content": _PROMPT}]
            body: dict[str, object] = {"model": spec.model, "messages": messages, "max_tokens": 1}
            return FirstRequest("/v1/chat/completions", body, "choices")
        case "llm/v1/completions":
            body = {"model": spec.model, "prompt": _PROMPT, "max_tokens": 1}
            return FirstRequest("/v1/completions", body, "choices")
        case "llm/v1/embeddings":
            return FirstRequest("/v1/embeddings", {"model": spec.model, "input": _PROMPT}, "data")
        case _:
            return None
