"""The proxy of LiteLLM."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.router.peer import MODEL, Launch, Place, executable

_QUIET = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the network for prices when it starts
    "LITELLM_TELEMETRY": "False",
    # Asking for keys would cost it more.
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}


class LiteLLM:
    """Two deployments weighted 9:1, one worker, no keys, no database, no callbacks, logs of errors alone."""

    name = "LiteLLM"
    about = "parses and writes both bodies anew, weighted random split"

    def program(self, installed: Path) -> Path | None:
        return executable(installed / "litellm" / "bin" / "litellm")

    def launch(self, place: Place) -> Launch:
        config = {
            "model_list": [_deployment(place.url(0), 9), _deployment(place.url(1), 1)],
            "litellm_settings": {"telemetry": False, "num_retries": 0},
            "router_settings": {"routing_strategy": "simple-shuffle"},
        }
        command = (
            str(self.program(place.installed)),
            "--config",
            place.write("config.yaml", json.dumps(config)),
        )
        return Launch(
            (*command, "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"), _QUIET
        )


def _deployment(url: str, weight: int) -> dict[str, object]:
    return {
        "model_name": MODEL,
        "litellm_params": {
            "model": f"openai/{MODEL}",
            "api_base": f"{url}/v1",
            "api_key": "none",
            "weight": weight,
        },
    }
