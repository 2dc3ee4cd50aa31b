"""What a request that makes or changes an endpoint may say. It is less than YAML may: whoever writes the site
can have any command run, and who calls the API cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from servestate.planner.access import Caller, Right
from servestate.planner.engine_keys import SCOPE as ENGINE_SCOPE
from servestate.providers.kept_secrets import refers, taken_out
from servestate.providers.protocol import PermanentError
from servestate.providers.secrets import references
from servestate.runtime.api.call import invalid
from servestate.runtime.api.desk import Desk

_CODE = (
    *("LD_", "GLIBC_", "GCONV_", "DYLD_", "PYTHON", "BASH_", "PERL", "RUBY", "NODE_", "JAVA_", "JDK_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "NVTX_", "OPENSSL_", "SSL_", "TRITON_", "TORCH", "LLVM_", "XLA_"),
)
"""Variables beginning so decide which code a program runs. They are for whoever writes the site."""
_OURS = ("SERVESTATE_", "PATH", "HF_ENDPOINT", "HF_HOME", "XDG_", "VLLM_PLUGINS", "VLLM_ALLOW", "VLLM_SERVER")
"""The marks of instances, and names that decide where programs and weights come from."""
_WHOLE = frozenset({"CC", "CXX", "HOME", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"})


def accepted(body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The body without the secrets that it brings along, and these. Raises Refusal."""
    if refers(dict(body)):
        raise invalid("a secret that came with another request cannot be referred to")
    _check_entities(body.get("config"))
    try:
        found, secrets = taken_out(dict(body))
    except ValueError as error:
        raise invalid(str(error)) from None
    return {key: value for key, value in found.items() if value is not None}, secrets


def _check_entities(config: Any) -> None:
    """What a request may not say, though YAML may: which files of this machine are served, which code an
    engine runs, and secrets of other people's scopes. What has the wrong shape is left to the rules."""
    for entity in _entities(config):
        for model in (entity.get("entity_name"), entity.get("model_name")):
            if isinstance(model, str) and "://" in model:
                raise invalid("entity_name must be a model of this site's catalogue, not a place")
        variables = entity.get("environment_vars")
        for variable in variables if isinstance(variables, dict) else ():
            if variable.upper().startswith((*_CODE, *_OURS)) or variable.upper() in _WHOLE:
                raise invalid(
                    f"environment_vars: {variable[:60]!r} can only be set in the site's configuration"
                )


def _entities(config: Any) -> Iterator[dict[str, Any]]:
    """All that can become an entity, in either spelling: which one counts, the rules decide later."""
    if isinstance(config, dict):
        for key in ("served_entities", "served_models"):
            found = config.get(key)
            yield from (one for one in found if isinstance(one, dict)) if isinstance(found, list) else ()


def check_secrets(desk: Desk, caller: Caller, config: Any) -> None:
    """Secrets that a request may refer to, and that are there: the router refuses a table that names one that
    is not, and with it what everybody else wants.

    Who names a secret and the URL that it is sent to has it. So without `secret_scopes` only those may who
    can have any command run anyway, and a token is nobody's to send. Raises Refusal.
    """
    scopes, secrets = desk.source.site().access.secret_scopes, desk.source.workspace().secrets
    trusted = desk.keyring.open or caller.may(Right.APPLY)
    for scope, key in set(_references(config)):
        # Two underscores part scope and key in the name of a variable: a key with them is another scope's.
        if "__" in key or not (trusted if scopes is None else scope in scopes):
            raise invalid(
                f"the secret scope {scope[:60]!r} is not one that requests may refer to; "
                "fix: add it to servestate.access.secret_scopes"
            )
        try:
            value = secrets.get(scope, key).reveal()
        except PermanentError as error:
            raise invalid(f"{error.what}; fix: {error.fix}") from None
        # By value: several references can mean one secret.
        if scope == ENGINE_SCOPE or (not desk.keyring.open and desk.keyring.find(value.encode(), 0.0)):
            raise invalid("that secret is servestate's own")


def _references(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield from references(value)
    elif isinstance(value, dict):
        for below in value.values():
            yield from _references(below)
    elif isinstance(value, list):
        for below in value:
            yield from _references(below)


def owned(desk: Desk, block: dict[str, Any], caller: Caller) -> dict[str, Any]:
    """The block, with its maker among those who may manage it; where no principals are known, nobody is."""
    if desk.keyring.open:
        return block
    return {**block, "permissions": [{"level": "CAN_MANAGE", str(caller.kind): caller.name}]}


def check_units(config: Any) -> None:
    """Raises Refusal where not every served entity has its model units."""
    entities = config.get("served_entities") if isinstance(config, dict) else None
    if not isinstance(entities, list) or not entities:
        raise invalid("config.served_entities must be a list of entities")
    for entity in entities:
        if not isinstance(entity, dict) or entity.get("provisioned_model_units") is None:
            raise invalid("every served entity needs provisioned_model_units")
