"""What is packaged, what it needs and what importing it does, read off the files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parents[1]
TREES = ("planner", "providers", "runtime")
PROJECT_TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PROJECT_TEXT)
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))

# Pinned exactly and re-exported in part by the distribution that is declared.
BELONGS_TO = {"pydantic_core": "pydantic"}
DISTRIBUTIONS = packages_distributions()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names_of(requirements: list[str]) -> set[str]:
    """The distributions that are asked for, our own extras left out."""
    found = {canonical(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in requirements}
    return found - {"servestate"}


RUNTIME = names_of(PROJECT["project"]["dependencies"])
EXTRAS = {extra: names_of(wanted) for extra, wanted in PROJECT["project"]["optional-dependencies"].items()}


def sources() -> Iterator[Path]:
    for tree in TREES:
        yield from sorted((ROOT / tree).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def third_party() -> dict[str, Path]:
    """Every module of somebody else's that our code imports, with one file that does."""
    ours = {"servestate", *sys.stdlib_module_names}
    return {module: path for path in sources() for module in imported(path) - ours}


def distributions_of(module: str) -> set[str]:
    module = BELONGS_TO.get(module, module)
    return {canonical(name) for name in DISTRIBUTIONS.get(module, [])}


def test_the_list_of_packages_is_the_folders_on_disk() -> None:
    folders = {path.parent.relative_to(ROOT) for tree in TREES for path in (ROOT / tree).rglob("__init__.py")}
    on_disk = {"servestate." + ".".join(folder.parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk
    for path in sources():
        assert (path.parent / "__init__.py").exists(), f"{path.relative_to(ROOT)} is in no package"


def test_every_direct_dependency_says_what_it_is_for() -> None:
    """T91."""
    lists = re.findall(r"^(?:dependencies|[a-z]+) = \[\n(.*?)^\]", PROJECT_TEXT, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for text in lists for line in text.splitlines() if line.strip().startswith('"')]
    requirements = [line for line in lines if re.match(r'"[a-zA-Z0-9._-]+(\[[a-z]+\])?[<>=!~]', line)]
    first = [line for line in requirements if not re.search(r"-part\d", line)]  # parts of the one above
    assert len(first) >= 15
    for line in first:
        assert re.search(r"#\s+\S+.{8,}", line), f"say what it is for: {line}"


def test_every_direct_dependency_is_imported() -> None:
    """T91."""
    used = {name for module in third_party() for name in distributions_of(module)}
    assert used >= RUNTIME, f"declared and never imported: {RUNTIME - used}"


def test_nothing_is_imported_that_is_not_declared() -> None:
    """T91."""
    declared = RUNTIME.union(
        *(EXTRAS[extra] for extra in ("llamacpp", "docker", "gpu", "pii", "parquet", "otlp", "demo"))
    )
    for module, path in third_party().items():
        found = distributions_of(module)
        installed_or_named = found or {canonical(module)}
        assert installed_or_named & declared, (
            f"{path.relative_to(ROOT)} imports {module}, which is not declared"
        )


def test_extras_are_not_needed_to_import_any_module() -> None:
    """What only an extra brings is imported inside functions, where its absence can be explained."""
    extra_only = set().union(*EXTRAS.values()) - RUNTIME
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            modules = imported_by(node)
            found = {name for module in modules for name in distributions_of(module)}
            assert not found & extra_only, (
                f"{path.relative_to(ROOT)} needs {found & extra_only} to be imported"
            )


def imported_by(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return {node.module.partition(".")[0]}
    return set()


HEAVY = (
    "torch",
    "vllm",
    "mlflow",
    "ray",
    "litellm",
    "httpx",
    "rich",
    "uvloop",
    "deepdiff",
    "pydantic",
    "yaml",
)


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    argv = [sys.executable, "-I", "-B", "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def test_the_parser_is_built_without_anything_heavy() -> None:
    code = "import sys; from servestate.runtime.cli import parser; parser(); print(*sys.modules)"
    modules = {name.partition(".")[0] for name in python(code).split()}
    assert not modules & set(HEAVY)
    assert not modules & third_party().keys()


WATCH = """
import sys
seen = []
def hook(event, args):
    if event.startswith(("socket.connect", "socket.bind", "subprocess.", "os.exec", "os.posix_spawn")):
        seen.append(event)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append(f"open {args[0]} {args[1]}")
sys.addaudithook(hook)
import pkgutil, importlib
for tree in ("planner", "providers", "runtime"):
    package = importlib.import_module(f"servestate.{tree}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("servestate.")]), *seen, sep="\\n")
"""


def test_importing_everything_touches_no_network_starts_nothing_and_writes_nothing() -> None:
    """T93."""
    count, *seen = python(WATCH).splitlines()
    assert int(count) > 60
    assert seen == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_holds_versions_and_hashes_and_no_place(lock: Path) -> None:
    text = lock.read_text()
    shapes = (
        r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+( ; .+)? \\",
        r"    --hash=sha256:[0-9a-f]{64}( \\)?",
        r" *#.*",
    )
    for number, line in enumerate(text.splitlines(), 1):
        assert any(re.fullmatch(shape, line) for shape in shapes), f"{lock.name}:{number}: {line}"
    assert not re.search(r"https?:|file:|--index|--extra-index|--find-links|--trusted|@ |[\s=]/\w", text)


def test_every_lock_holds_what_it_is_for() -> None:
    locked = {
        lock.stem: set(re.findall(r"^([a-z0-9._-]+)==", lock.read_text(), re.MULTILINE)) for lock in LOCKS
    }
    assert locked["runtime"] >= RUNTIME
    assert locked["demo"] >= RUNTIME | EXTRAS["llamacpp"] | EXTRAS["demo"]
    assert locked["dev"] >= RUNTIME | EXTRAS["llamacpp"] | EXTRAS["demo"] | EXTRAS["dev"]
    assert locked["runtime"] <= locked["demo"] <= locked["dev"]


def versions(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))


def test_the_locks_agree_on_every_version() -> None:
    dev = versions("dev")
    for lock in ("runtime", "demo"):
        assert versions(lock).items() <= dev.items()


def test_a_wheel_holds_exactly_the_files_of_the_packages(tmp_path: Path) -> None:
    """T93: no .pth, no start-up hook, nothing that is not in the repository."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for tree in TREES:
        copytree(ROOT / tree, source / tree, ignore=ignore_patterns("__pycache__"))
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    argv += ["--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(argv, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {name.partition("/")[2] for name in archive.namelist() if ".dist-info/" in name}
    wanted = {f"servestate/{path.relative_to(ROOT)}" for path in sources()}
    data = {f"servestate/{tree}/py.typed" for tree in TREES} | {"servestate/runtime/foundation_models.yaml"}
    assert packed == wanted | data
    assert about == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
