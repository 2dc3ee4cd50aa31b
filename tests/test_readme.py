"""The README shows what the program prints, letter for letter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLI = str(Path(sys.executable).with_name("servestate"))


def shown(command: str) -> str:
    """The output that the README shows for a command."""
    text = (ROOT / "README.md").read_text()
    match = re.search(rf"```console\n\$ {re.escape(command)}\n(.*?)```", text, re.DOTALL)
    assert match is not None, f"the README does not show {command}"
    return match[1]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CLI, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "CI": "true"},
        check=False,
    )


def example(folder: Path) -> Path:
    """The quickstart's configuration in a folder of its own; what is written there."""
    return Path(shutil.copy(ROOT / "examples" / "quickstart" / "endpoints.yaml", folder))


def test_wrong_split_is_reported_as_shown(tmp_path: Path) -> None:
    path = example(tmp_path)
    path.write_text(path.read_text().replace("traffic_percentage: 10", "traffic_percentage: 20"))
    assert run(tmp_path, "validate").stderr == shown("servestate validate")


def test_change_of_the_split_is_planned_as_shown(tmp_path: Path) -> None:
    """The same endpoint with external entities, so that it can be applied without weights."""
    entities = "".join(
        f"          - {{name: {name}, external_model: {{provider: custom, name: m, task: llm/v1/chat,"
        ' custom_provider_config: {custom_provider_url: "http://127.0.0.1:1/v1"}}}\n'
        for name in ("current", "challenger")
    )
    text = (
        "resources:\n  model_serving_endpoints:\n    m:\n      name: multi-model\n      config:\n"
        f"        served_entities:\n{entities}        traffic_config:\n          routes:\n"
        "            - {served_model_name: current, traffic_percentage: 90}\n"
        "            - {served_model_name: challenger, traffic_percentage: 10}\n"
    )
    path = tmp_path / "endpoints.yaml"
    path.write_text(text)
    assert run(tmp_path, "apply", "--auto-approve").returncode == 0
    path.write_text(text.replace(": 90", ": 50").replace(": 10", ": 50"))
    assert run(tmp_path, "plan").stdout == shown("servestate plan")


def test_example_is_valid_without_warnings(tmp_path: Path) -> None:
    example(tmp_path)
    found = run(tmp_path, "validate", "--strict")
    assert (found.returncode, found.stderr) == (0, "")


def test_the_configuration_of_traffic_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text().partition("## Traffic")[2]
    match = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert match is not None
    (tmp_path / "endpoints.yaml").write_text(match[1])
    version = '{engine: command, argv: [serve, "{port}"]}'
    models = f'servestate: {{models: {{acme.chat.llama: {{versions: {{"1": {version}, "2": {version}}}}}}}}}'
    (tmp_path / "models.yaml").write_text(models)
    found = run(tmp_path, "validate", "--strict")
    assert (found.returncode, found.stderr) == (0, "")
