"""How the rules say what is wrong: a path inside the endpoint, which becomes a place in a file."""

from __future__ import annotations

from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import Block, Items, Path, mark_of

_OLD_SPELLING = {
    "served_entities": "served_models",
    "entity_name": "model_name",
    "entity_version": "model_version",
}


def written_path(block: Block, path: Path) -> Path:
    """`path` of a loaded endpoint as its YAML spells it: N1 undone, entities by position not by name."""
    config = block.get("config")
    if (
        path[:2] == ("config", "served_entities")
        and isinstance(config, Block)
        and "served_entities" not in config
    ):
        path = tuple(_OLD_SPELLING.get(part, part) if isinstance(part, str) else part for part in path)
    if len(path) > 2 and path[0] == "config" and isinstance(path[2], str) and isinstance(config, Block):
        path = (*path[:2], _position(config.get(str(path[1])), path[2]), *path[3:])
    return path


def _position(entities: object, name: str) -> str | int:
    for index, item in enumerate(entities if isinstance(entities, Items) else ()):
        if isinstance(item, Block) and item.get("name") == name:
            return index
    return name


class Report:
    """Findings about the one block that stands at `base`."""

    __slots__ = ("_base", "_block", "_findings")

    def __init__(self, findings: Findings, block: Block, base: Path) -> None:
        self._findings = findings
        self._block = block
        self._base = base

    def error(self, code: str, what: str, fix: str, *path: str | int, detail: str = "") -> None:
        """Note an error at the value under `path`, or at the nearest place around it that is written."""
        written = written_path(self._block, path)
        self._findings.error(code, what, fix, self._mark(written), (*self._base, *written), detail)

    def warning(self, code: str, what: str, fix: str, *path: str | int, detail: str = "") -> None:
        """Note something that stops nothing."""
        written = written_path(self._block, path)
        self._findings.warning(code, what, fix, self._mark(written), (*self._base, *written), detail)

    def note(self, code: str, what: str, fix: str, *path: str | int) -> None:
        """Note something that a bundle tends to have in many places; it is warned of once."""

        def place() -> tuple[int, Path]:
            written = written_path(self._block, path)
            return self._mark(written), (*self._base, *written)

        self._findings.note(code, what, fix, place)

    def is_written(self, *path: str) -> bool:
        """Whether the YAML itself has the key at `path`."""
        node: object = self._block
        for part in path:
            if not isinstance(node, Block) or part not in node:
                return False
            node = node[part]
        return True

    def _mark(self, path: Path) -> int:
        return mark_of(self._block, path)
