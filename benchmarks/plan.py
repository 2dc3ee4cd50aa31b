"""What a plan costs: CPU seconds, wall seconds and peak memory of whole `servestate` processes.

    .venv/bin/python benchmarks/plan.py [--repeats 5] [--markdown FILE]

A folder of N external endpoints is planned (all new), applied, and planned again (nothing to do, one
changed). The yardstick, measured in the same interleaved rounds, is PyYAML's C loader reading the same file:
its share says how much of a plan is not reading YAML. Also: the start of `servestate plan` on one endpoint,
beside the start of the bare interpreter. Medians; peak memory is the process's own maximum resident set.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SERVESTATE = str(Path(sys.executable).with_name("servestate"))
SIZES = (1_000, 3_000, 10_000)
LOAD = "import yaml; yaml.load(open('endpoints.yaml'), Loader=yaml.CSafeLoader)"
BLOCK = """\
    e{i:05}:
      name: endpoint-{i:05}
      config:
        served_entities:
          - name: m
            external_model:
              provider: custom
              name: model-{i}
              task: llm/v1/chat
              custom_provider_config: {{custom_provider_url: "http://127.0.0.1:1/v1"}}
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process: CPU seconds (user + system), wall seconds, peak MiB."""

    cpu: float
    wall: float
    peak: float


def run(*command: str, cwd: Path) -> Cost:
    """Run a process to its end and take its cost from the kernel. Raises if it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1024)


def write_bundle(folder: Path, count: int) -> None:
    """`count` external endpoints."""
    blocks = "".join(BLOCK.format(i=i) for i in range(count))
    (folder / "endpoints.yaml").write_text(f"resources:\n  model_serving_endpoints:\n{blocks}")


def median(costs: Sequence[Cost]) -> Cost:
    """Each figure's own median."""
    return Cost(*(statistics.median(getattr(c, f) for c in costs) for f in ("cpu", "wall", "peak")))


def measure(count: int, repeats: int) -> Iterator[tuple[str, Cost]]:
    """The rows of one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bundle(folder, count)
        plain, noop = [], []
        new = [run(SERVESTATE, "plan", cwd=folder) for _ in range(repeats)]
        applied = run(SERVESTATE, "apply", "--auto-approve", cwd=folder)
        for _ in range(repeats):
            plain.append(run(sys.executable, "-c", LOAD, cwd=folder))
            noop.append(run(SERVESTATE, "plan", cwd=folder))
        path = folder / "endpoints.yaml"
        path.write_text(path.read_text().replace("name: model-7\n", "name: model-seven\n"))
        changed = [run(SERVESTATE, "plan", cwd=folder) for _ in range(repeats)]
    yield "YAML read by PyYAML's C loader", median(plain)
    yield "plan, all new", median(new)
    yield "apply, all new (once)", applied
    yield "plan, no changes", median(noop)
    yield "plan, 1 changed", median(changed)


def start_up(repeats: int) -> Iterator[tuple[str, Cost]]:
    """The start of the interpreter, and of a plan on one endpoint that is applied."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bundle(folder, 1)
        run(SERVESTATE, "apply", "--auto-approve", cwd=folder)
        bare, plan = [], []
        for _ in range(repeats * 3):
            bare.append(run(sys.executable, "-c", "pass", cwd=folder))
            plan.append(run(SERVESTATE, "plan", cwd=folder))
    yield "python -c pass", median(bare)
    yield "servestate plan, one endpoint", median(plan)


def table(repeats: int) -> Iterator[str]:
    """The report, line by line."""
    yield "| endpoints | step | CPU s | wall s | peak MiB | CPU, × YAML read |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: |"
    for size in SIZES:
        yardstick = 0.0
        for step, cost in measure(size, repeats):
            yardstick = yardstick or cost.cpu
            figures = f"{cost.cpu:.2f} | {cost.wall:.2f} | {cost.peak:.0f} | {cost.cpu / yardstick:.2f}"
            yield f"| {size:,} | {step} | {figures} |"
    for step, cost in start_up(repeats):
        yield f"| 1 | {step} | {cost.cpu:.2f} | {cost.wall:.2f} | {cost.peak:.0f} | |"


def main() -> None:
    """Measure, print, and keep the table if asked to."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = flags.parse_args()
    lines = []
    for line in table(arguments.repeats):
        print(line, flush=True)
        lines.append(line)
    if arguments.markdown:
        command = f"`python benchmarks/plan.py --repeats {arguments.repeats}`"
        head = f"# What a plan costs\n\nMade by {command}: medians of whole processes, interleaved.\n\n"
        arguments.markdown.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
