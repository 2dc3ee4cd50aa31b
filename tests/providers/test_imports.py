"""`servestate plan` must start fast: what only waiting and probing need is imported when they are done."""

from __future__ import annotations

import subprocess
import sys


def test_importing_every_provider_imports_no_heavy_library():
    heavy = {"httpx", "tenacity", "xllamacpp", "docker", "requests", "pynvml"}
    code = f"import sys, servestate.providers.registry; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_shim_imports_only_the_standard_library():
    code = "import sys; before = set(sys.modules); import shim; print(*sorted(set(sys.modules) - before))"
    from servestate.providers import shim

    folder = shim.__file__.rpartition("/")[0]
    argv = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {folder!r}); {code}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - {"shim"} <= set(sys.stdlib_module_names)
    assert "asyncio" not in loaded
