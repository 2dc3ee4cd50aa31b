"""Addresses: what a plan, the state and the marks on a running thing call it.

multi-model                      an endpoint
multi-model/current              a served entity of it
multi-model/current@3f9a1c27#0   one running revision of the entity, replica 0
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The serving API's alphabet for endpoint and entity names, plus the dot that defaulted entity names carry.
_NAME = r"[A-Za-z0-9_.-]+"
_PATTERN = re.compile(
    rf"(?P<endpoint>{_NAME})(?:/(?P<entity>{_NAME})(?:@(?P<revision>[0-9a-f]+)#(?P<replica>\d+))?)?\Z"
)


@dataclass(frozen=True, slots=True, order=True)
class EndpointAddress:
    """An endpoint, by name."""

    endpoint: str

    def __str__(self) -> str:
        return self.endpoint


@dataclass(frozen=True, slots=True, order=True)
class EntityAddress:
    """A served entity of an endpoint."""

    endpoint: str
    entity: str

    def __str__(self) -> str:
        return f"{self.endpoint}/{self.entity}"


@dataclass(frozen=True, slots=True, order=True)
class InstanceAddress:
    """One replica of one revision of a served entity. The revision is part of the identity, so a
    replacement is always a new address and nothing is ever changed in place."""

    endpoint: str
    entity: str
    revision: str
    replica: int = 0

    @property
    def of(self) -> EntityAddress:
        """The served entity that this is an instance of."""
        return EntityAddress(self.endpoint, self.entity)

    def __str__(self) -> str:
        return f"{self.endpoint}/{self.entity}@{self.revision}#{self.replica}"


Address = EndpointAddress | EntityAddress | InstanceAddress


def parse_address(text: str) -> Address:
    """The address that prints as `text`. Raises ValueError naming the three accepted forms."""
    match = _PATTERN.match(text)
    if match is None:
        raise ValueError(
            f'"{text}" is not an address; write ENDPOINT, ENDPOINT/ENTITY or ENDPOINT/ENTITY@REVISION#REPLICA'
        )
    endpoint, entity, revision, replica = match.group("endpoint", "entity", "revision", "replica")
    if entity is None:
        return EndpointAddress(endpoint)
    if revision is None:
        return EntityAddress(endpoint, entity)
    return InstanceAddress(endpoint, entity, revision, int(replica))


def parse_instance(text: str) -> InstanceAddress:
    """The instance address that prints as `text`. Raises ValueError for any other address."""
    address = parse_address(text)
    if not isinstance(address, InstanceAddress):
        raise ValueError(f'"{text}" is not an instance address; write ENDPOINT/ENTITY@REVISION#REPLICA')
    return address
