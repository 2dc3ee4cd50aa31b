"""The routing table as text: one JSON object with a checksum over its canonical form.

`{"checksum": "sha256:…", "format_version": 1, "table": {…}}`. Decoding trusts nothing: a table that passed
here can be served without a further look, so whatever would split a header, steal a share of traffic or
shadow another name is refused with the place named.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from servestate.planner.access import Grant, Kind, Level
from servestate.planner.revision import canonical_json, digest
from servestate.planner.table import (
    LIMIT_KEYS,
    PAYLOAD_FORMATS,
    PII_BEHAVIORS,
    REPLICA_POLICIES,
    SPLITS,
    STICKY_SOURCES,
    Backend,
    Credential,
    EndpointRoutes,
    EntityRoute,
    Guard,
    Limit,
    Mirror,
    Payloads,
    RoutingTable,
    Sticky,
    Traffic,
)

FORMAT_VERSION = 1
"""Raised when a reader of the old format would misread the new one."""

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_PRINTABLE = re.compile(r"[!-~]+")
_KEY = re.compile(r"[!-~]*")
_PATH = re.compile(r"(/[!-~]*)?")
_TABLE = re.compile(r"[A-Za-z0-9_.\-]{1,400}")
_URL = re.compile(r"https?://[A-Za-z0-9.\-:\[\]]+(/[!-~]*)?")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\t -~]*")
_OURS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "content-type", "upgrade", "te"}
)

# Canonical JSON sorts its keys, so the envelope's layout is fixed.
_AS_ENCODED = re.compile(
    rf'{{"checksum":"sha256:(?P<checksum>[0-9a-f]{{64}})","format_version":{FORMAT_VERSION},'
    r'"table":(?P<table>\{.*,"lineage":"(?P<lineage>[^"\\]*)","version":(?P<version>\d+)\})\}\n',
    re.DOTALL,
)

T = TypeVar("T")


def encode(table: RoutingTable) -> str:
    """The file's text, ending in a newline. Equal tables give equal text."""
    # By hand, since an apply of many endpoints writes the table many times: `asdict` copies every value, and
    # a digest of the value would make the same text once more.
    text = canonical_json(_plain(table))
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"checksum":"sha256:{checksum}","format_version":{FORMAT_VERSION},"table":{text}}}\n'


def _plain(value: Any) -> Any:
    """Dataclasses as mappings, all the way down; JSON knows the rest."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    slots = getattr(value, "__slots__", ())  # every part of a table is a dataclass with slots
    return {name: _plain(getattr(value, name)) for name in slots} if slots else value


def decode(text: str) -> RoutingTable:
    """The table in `text`. Raises ValueError that says what is wrong and where in the table."""
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(envelope, dict) or set(envelope) != {"checksum", "format_version", "table"}:
        raise ValueError("expected exactly the keys checksum, format_version and table")
    if envelope["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format_version is {envelope['format_version']!r}, expected {FORMAT_VERSION}")
    found = f"sha256:{_digest_of(envelope['table'])}"
    if envelope["checksum"] != found:
        raise ValueError(f"checksum is {envelope['checksum']!r}, the content gives {found!r}")
    return _table(_Fields(envelope["table"], "table"))


def identity_of(text: str) -> tuple[str, int]:
    """Lineage and version of the table in `text`, without decoding the rest: an order of magnitude cheaper.

    Holds only for text that `encode` wrote and nobody touched, which the checksum proves. Raises ValueError
    for any other, valid ones in another layout included.
    """
    match = _AS_ENCODED.fullmatch(text)
    if match is None or hashlib.sha256(match["table"].encode()).hexdigest() != match["checksum"]:
        raise ValueError("not a table as this version of servestate writes it, or damaged")
    return match["lineage"], int(match["version"])


def _digest_of(value: Any) -> str:
    try:
        return digest(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not canonical JSON: {error}") from None


class _Fields:
    """One JSON object, read field by field; `done` refuses what was not asked for."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, found {_kind(value)}")
        self._left = dict(value)
        self.where = where

    def take(self, key: str, kind: type[T]) -> T:
        if key not in self._left:
            raise ValueError(f"{self.where}.{key} is missing")
        value = self._left.pop(key)
        # bool is an int to isinstance, but never a weight or a version.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.where}.{key}: expected {kind.__name__}, found {_kind(value)}")
        return value

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self.take(key, str)
        if not pattern.fullmatch(value):
            raise ValueError(f"{self.where}.{key}: {value!r} does not match {pattern.pattern}")
        return value

    def one_of(self, key: str, known: tuple[str, ...]) -> str:
        value = self.take(key, str)
        if value not in known:
            raise ValueError(f"{self.where}.{key}: {value!r} is none of {', '.join(map(repr, known))}")
        return value

    def whole(self, key: str, least: int, most: int = 1 << 53) -> int:
        value = self.take(key, int)
        if not least <= value <= most:
            raise ValueError(f"{self.where}.{key}: {value} is not within {least}..{most}")
        return value

    def number(self, key: str, least: float, most: float) -> float:
        value = self._left.pop(key, None)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{self.where}.{key}: expected a number within {least}..{most}")
        return float(value)

    def has(self, key: str) -> bool:
        return key in self._left

    def optional(self, key: str) -> Any:
        return self._left.pop(key, None)

    def each(self, key: str, read: Callable[[_Fields], T]) -> tuple[T, ...]:
        items = self.take(key, list)
        return tuple(read(_Fields(item, f"{self.where}.{key}[{i}]")) for i, item in enumerate(items))

    def done(self) -> None:
        if self._left:
            raise ValueError(f"{self.where}: unknown key {min(self._left)!r}")


def _table(fields: _Fields) -> RoutingTable:
    version = fields.take("version", int)
    if version < 0:
        raise ValueError(f"{fields.where}.version: {version} is negative")
    lineage = fields.take("lineage", str)
    endpoints = fields.each("endpoints", _endpoint)
    fields.done()
    _no_twins("table.endpoints", (endpoint.name for endpoint in endpoints))
    return RoutingTable(version, lineage, endpoints)


def _endpoint(fields: _Fields) -> EndpointRoutes:
    name = fields.text("name", _NAME)
    config_version = fields.take("config_version", int)
    entities = fields.each("entities", _entity)
    # Older tables have none of the following.
    grants = fields.each("grants", _grant) if fields.has("grants") else ()
    limits = fields.each("limits", _limit) if fields.has("limits") else ()
    traffic = _within(fields, "traffic", _traffic) or Traffic()
    guard_input, guard_output = (
        _within(fields, "guard_input", _guard),
        _within(fields, "guard_output", _guard),
    )
    usage = fields.take("usage", bool) if fields.has("usage") else False
    payloads = _within(fields, "payloads", _payloads)
    made = fields.whole("made", 0) if fields.has("made") else 0
    fields.done()
    where = f"endpoint {name!r}"
    if not entities:
        raise ValueError(f"{where} has no entity")
    _no_twins(where, (entity.name for entity in entities))
    total = sum(entity.weight for entity in entities)
    if total != 100:
        raise ValueError(f"{where}: weights add up to {total}, not 100")
    if traffic.mirror is not None and traffic.mirror.entity not in {entity.name for entity in entities}:
        raise ValueError(f"{where}: the mirror {traffic.mirror.entity!r} is none of its entities")
    return EndpointRoutes(
        name,
        config_version,
        entities,
        grants,
        limits,
        traffic,
        guard_input,
        guard_output,
        usage,
        payloads,
        made,
    )


def _within(fields: _Fields, key: str, read: Callable[[_Fields], T]) -> T | None:
    """The object under `key`; None where there is none, or null."""
    value = fields.optional(key)
    return None if value is None else read(_Fields(value, f"{fields.where}.{key}"))


def _traffic(fields: _Fields) -> Traffic:
    traffic = Traffic(
        split=fields.one_of("split", SPLITS),
        sticky=_within(fields, "sticky", _sticky),
        replicas=fields.one_of("replicas", REPLICA_POLICIES),
        fallback=fields.take("fallback", bool),
        after_send=fields.take("after_send", bool),
        deadline_s=fields.number("deadline_s", 0, 86_400),
        stall_s=fields.number("stall_s", 0, 86_400),
        concurrency=fields.whole("concurrency", 0),
        shadow=fields.take("shadow", bool),
        named_by_header=fields.take("named_by_header", bool),
        mirror=_within(fields, "mirror", _mirror),
    )
    fields.done()
    if (traffic.split == "sticky") != (traffic.sticky is not None):
        raise ValueError(f"{fields.where}: split and sticky contradict each other")
    return traffic


def _sticky(fields: _Fields) -> Sticky:
    source = fields.one_of("source", STICKY_SOURCES)
    sticky = Sticky(source, fields.text("name", _HEADER_VALUE), fields.take("salt", str))
    fields.done()
    return sticky


def _mirror(fields: _Fields) -> Mirror:
    entity = fields.text("entity", _NAME)
    mirror = Mirror(entity, fields.whole("percent", 1, 100), fields.whole("max_inflight", 1))
    fields.done()
    return mirror


def _guard(fields: _Fields) -> Guard:
    keywords = fields.take("keywords", list)
    if not all(isinstance(keyword, str) and keyword for keyword in keywords):
        raise ValueError(f"{fields.where}.keywords: expected texts that are not empty")
    guard = Guard(tuple(keywords), fields.one_of("pii", PII_BEHAVIORS))
    fields.done()
    return guard


def _payloads(fields: _Fields) -> Payloads:
    payloads = Payloads(
        table=fields.text("table", _TABLE),
        format=fields.one_of("format", PAYLOAD_FORMATS),
        percent=fields.whole("percent", 0, 100),
        max_body_bytes=fields.whole("max_body_bytes", 0),
    )
    fields.done()
    return payloads


def _grant(fields: _Fields) -> Grant:
    level, kind, name = fields.take("level", int), fields.take("kind", str), fields.take("name", str)
    fields.done()
    return Grant(Level(level), Kind(kind), name)


def _limit(fields: _Fields) -> Limit:
    key, principal = fields.one_of("key", LIMIT_KEYS), fields.take("principal", str)
    tokens = fields.whole("tokens", 0) if fields.has("tokens") else 0  # older tables have none
    limit = Limit(key, principal, fields.whole("calls", 0), tokens)
    fields.done()
    if not (limit.calls or limit.tokens):
        raise ValueError(f"{fields.where}: {limit} limits nothing")
    return limit


def _entity(fields: _Fields) -> EntityRoute:
    name = fields.text("name", _NAME)
    weight = fields.take("weight", int)
    if not 0 <= weight <= 100:
        raise ValueError(f"{fields.where}.weight: {weight} is not within 0..100")
    model = fields.take("model", str)
    task = fields.take("task", str)
    fixed_path = fields.take("fixed_path", bool)
    backends = fields.each("backends", _backend)
    credential = _credential(fields.optional("credential"), f"{fields.where}.credential")
    headers = _headers(fields.take("headers", list), f"{fields.where}.headers")
    fields.done()
    return EntityRoute(name, weight, model, task, fixed_path, backends, credential, headers)


def _backend(fields: _Fields) -> Backend:
    replica, url = fields.text("replica", _PRINTABLE), fields.text("url", _URL)
    # Older tables have neither.
    key = fields.text("key", _KEY) if fields.has("key") else ""
    health = fields.text("health", _PATH) if fields.has("health") else ""
    backend = Backend(replica, url, key, health)
    fields.done()
    return backend


def _credential(value: Any, where: str) -> Credential | None:
    if value is None:
        return None
    fields = _Fields(value, where)
    header = _header_name(fields.take("header", str), f"{where}.header")
    credential = Credential(header, fields.text("prefix", _HEADER_VALUE), fields.take("secret", str))
    fields.done()
    return credential


def _headers(items: list[Any], where: str) -> tuple[tuple[str, str], ...]:
    return tuple(_header(item, f"{where}[{i}]") for i, item in enumerate(items))


def _header(item: Any, where: str) -> tuple[str, str]:
    if not isinstance(item, (list, tuple)) or len(item) != 2 or not all(isinstance(x, str) for x in item):
        raise ValueError(f"{where}: expected [name, value]")
    if not _HEADER_VALUE.fullmatch(item[1]):
        raise ValueError(f"{where}: the value of {item[0]!r} holds a character that no header may hold")
    return _header_name(item[0], where), item[1]


def _header_name(name: str, where: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"{where}: {name!r} is not a header name")
    if name.lower() in _OURS:
        raise ValueError(f"{where}: {name!r} is set by the router alone")
    return name


def _no_twins(where: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{where}: the name {name!r} is used twice")
        seen.add(name)


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", type(None): "null"}.get(
        type(value), f"{value!r}"[:40]
    )
