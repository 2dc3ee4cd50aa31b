"""The examples: valid, and planned as their README shows, on hosts that are written down here.

To write the plans into the README files anew, and then read every line of the difference:

    SERVESTATE_REWRITE_GOLDEN=1 python -m pytest tests/engines/test_examples.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.fit_facts import ModelFacts
from servestate.planner.launch import LOCAL, LaunchSpec, Placement
from servestate.planner.live import Live
from servestate.planner.plan import Plan, make_plan
from servestate.planner.render import render_plan
from servestate.planner.resolve import Resolved, resolve
from servestate.planner.spec.bundle import Desired
from servestate.planner.spec.site import DeclaredGpu
from servestate.planner.state import State
from servestate.planner.steps import Launch
from servestate.planner.surroundings import Gpu, Host, ImageFacts, Surroundings
from servestate.runtime.configuration import Options, load_configuration
from servestate.runtime.workspace import SUPPORTED_PROVIDERS

EXAMPLES = Path(__file__).parents[2] / "examples"
REWRITE = "SERVESTATE_REWRITE_GOLDEN"
GIB = 1 << 30
LINEAGE = "00000000-0000-0000-0000-000000000000"

_QWEN3 = ModelFacts(
    source_format="safetensors",
    architecture="Qwen3ForCausalLM",
    dtype="bfloat16",
    weight_bytes=16_381_470_720,
    parameters=8_190_735_360,
    layers=36,
    hidden_size=4096,
    intermediate_size=12288,
    query_heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_size=151_936,
    max_context=40960,
)
MODELS: Mapping[str, ModelFacts] = {
    "hf://Qwen/Qwen3-8B": _QWEN3,
    "hf://Qwen/Qwen3-8B-FP8": replace(
        _QWEN3, dtype="float8_e4m3fn", weight_bytes=9_440_000_000, quantization="fp8"
    ),
    "hf://Qwen/Qwen3-Embedding-0.6B": replace(
        _QWEN3,
        weight_bytes=1_191_553_024,
        parameters=595_776_512,
        layers=28,
        hidden_size=1024,
        intermediate_size=3072,
        query_heads=16,
        vocab_size=151_669,
        max_context=32768,
    ),
    "hf://Qwen/Qwen3-32B": replace(
        _QWEN3,
        weight_bytes=65_524_246_528,
        parameters=32_762_123_264,
        layers=64,
        hidden_size=5120,
        intermediate_size=25600,
        query_heads=64,
    ),
}
"""What the headers of the examples' models say, as they are on the hub: nothing is downloaded here."""
IMAGE = ImageFacts("sha256:" + "5e" * 32, portable=True, size=9_500_000_000)


@dataclass(frozen=True, slots=True)
class Example:
    """One folder of `examples/`, and the hosts that it is planned for."""

    name: str
    desired: Desired
    hosts: tuple[Host, ...]

    def plan(self) -> Plan:
        """The first plan: nothing runs, and no image was pulled yet."""
        wanted = resolve(self.desired, SUPPORTED_PROVIDERS)
        return make_plan(wanted, State(LINEAGE), Live({}, (), None), self._surroundings(wanted))

    def _surroundings(self, wanted: Resolved) -> Surroundings:
        specs = [entity.spec for endpoint in wanted.endpoints for entity in endpoint.entities]
        launched = (spec for spec in specs if isinstance(spec, LaunchSpec))
        images = {spec.container.image for spec in launched if spec.container is not None}
        return Surroundings(
            {("docker", host.name): host for host in self.hosts},
            {(host.name, image): IMAGE for host in self.hosts for image in images},
            MODELS,
        )


def example(name: str) -> Example:
    """The folder, on the hosts that its site declares; on two H100 where it declares none. An example of
    external models needs no host."""
    desired = load_configuration(Options(EXAMPLES / name, None, {}))
    docker = desired.site.providers.docker
    if docker is None:
        return Example(name, desired, ())
    h100 = DeclaredGpu(id="", memory="80GiB", name="NVIDIA H100 80GB HBM3")
    asked = tuple(h100.model_copy(update={"id": str(number)}) for number in range(2))
    hosts = [
        Host(host_name, tuple(Gpu(gpu.id, gpu.memory, gpu.name) for gpu in host.gpus or asked))
        for host_name, host in docker.by_name.items()
    ]
    return Example(name, desired, tuple(hosts))


@pytest.mark.parametrize("name", ["gpu", "traffic", "two-hosts"])
def test_is_valid_without_warnings(name: str) -> None:
    assert not example(name).desired.warnings


@pytest.mark.parametrize("name", ["gpu", "traffic", "two-hosts"])
def test_the_readme_shows_the_plan(name: str) -> None:
    readme = EXAMPLES / name / "README.md"
    text = readme.read_text()
    plan = render_plan(example(name).plan())
    block = re.compile(r"(```console\n\$ servestate plan\n).*?(```)", re.DOTALL)
    if os.environ.get(REWRITE):
        readme.write_text(block.sub(lambda match: match[1] + plan + match[2], text))
        return
    shown = block.search(text)
    assert shown is not None
    assert shown[0] == f"```console\n$ servestate plan\n{plan}```"


def placements(plan: Plan) -> dict[str, Placement]:
    """Where each entity goes."""
    launches = [node.step for node in plan.nodes if isinstance(node.step, Launch)]
    return {str(step.address.of): step.placement for step in launches}


def test_the_canary_gets_a_gpu_of_its_own() -> None:
    found = placements(example("gpu").plan())
    assert {placement.host for placement in found.values()} == {LOCAL}
    assert {placement.gpus for placement in found.values()} == {("0",), ("1",)}


def test_each_model_is_placed_where_it_fits() -> None:
    found = placements(example("two-hosts").plan())
    assert found == {
        "search/embedder": Placement("small", ("0",), 0.5),
        "chat/assistant": Placement("large", ("0", "1")),
    }


def test_one_gpu_does_not_hold_both_versions() -> None:
    both = example("gpu")
    (host,) = both.hosts
    one = replace(both, hosts=(replace(host, gpus=host.gpus[:1]),))
    with pytest.raises(InvalidInput, match="does not fit"):
        one.plan()
