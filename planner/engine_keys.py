"""The key between the router and an engine: a random one for every replica, so that whoever else reaches the
engine's port cannot use it.

Nothing here holds a key. A replica's key is named by a secret reference of a reserved scope, which the
routing table may hold as it holds any other reference; the value is derived from a random seed beside the
state when an engine is launched and when the router loads its table.
"""

from __future__ import annotations

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import LaunchSpec, Spec

SCOPE = "servestate-engine"
"""The scope of the reserved references; configuration cannot name it, since scopes come from people."""

KEYED = frozenset({"vllm", "llamacpp"})
"""The engines that can ask for a key."""


def key_reference(address: InstanceAddress, spec: Spec) -> str:
    """The reference of the replica's key, "" where its engine asks for none."""
    if not isinstance(spec, LaunchSpec) or spec.engine not in KEYED:
        return ""
    return f"{{{{secrets/{SCOPE}/{address.endpoint}:{address.entity}:{address.revision}:{address.replica}}}}}"
