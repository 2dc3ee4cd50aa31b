"""What loading a bundle costs: CPU seconds, peak memory, and whether both grow with its size.

`python benchmarks/spec_load.py` runs each size in a process of its own, because a peak cannot be taken back.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

SIZES = (1_000, 3_000, 10_000)

PLAIN = """\
    ep_{i:05d}: {{name: ep-{i:05d}, config: {{served_entities: [{{name: current, entity_name: demo.chat, \
entity_version: '1', workload_size: Small}}]}}}}
"""
SPLIT = """\
    ep_{i:05d}:
      name: ep-{i:05d}
      config:
        served_entities:
          - name: current
            entity_name: demo.chat
            entity_version: "1"
            workload_size: Small
            scale_to_zero_enabled: true
          - name: challenger
            entity_name: demo.chat
            entity_version: "2"
            workload_size: Small
            scale_to_zero_enabled: true
        traffic_config:
          routes:
            - served_model_name: current
              traffic_percentage: "90"
            - served_model_name: challenger
              traffic_percentage: "10"
"""
EXTERNAL = """\
    ep_{i:05d}:
      name: ep-{i:05d}
      config:
        served_entities:
          - name: upstream
            external_model:
              name: gpt-4
              provider: openai
              task: llm/v1/chat
              openai_config:
                openai_api_key: "{{{{secrets/scope/key}}}}"
                openai_api_base: http://127.0.0.1:9/v1
        traffic_config:
          routes:
            - {{served_model_name: upstream, traffic_percentage: 100}}
"""
SHAPES = {"plain": PLAIN, "split": SPLIT, "external": EXTERNAL}


def bundle(shape: str, size: int) -> str:
    """YAML of `size` endpoints."""
    blocks = "".join(SHAPES[shape].format(i=i) for i in range(size))
    return f"bundle: {{name: bench}}\nresources:\n  model_serving_endpoints:\n{blocks}"


def peak_mb() -> float:
    """The most memory that this process has had resident, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(shape: str, size: int) -> dict[str, float]:
    """One load in this process. `import_s` is the import of the package, pydantic and PyYAML included."""
    text = bundle(shape, size)
    start = time.process_time()
    from servestate.planner.spec.bundle import Document, load
    from servestate.planner.spec.normal import normal_form

    imported = time.process_time()
    desired = load([Document("bundle.yaml", text)])
    loaded = time.process_time()
    peak = peak_mb()
    for endpoint in desired.endpoints:
        normal_form(endpoint.spec)
    done = time.process_time()
    return {
        "text_mb": len(text) / 1e6,
        "import_s": imported - start,
        "load_s": loaded - imported,
        "normal_form_s": done - loaded,
        "peak_mb": peak,
    }


def main() -> None:
    """Print a table of every shape and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "SIZE"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    print(
        f"{'shape':9} {'endpoints':>9} {'text MB':>8} {'import s':>9} {'load s':>8} {'µs each':>8}", end=" "
    )
    print(f"{'normal s':>9} {'peak MB':>8}")
    for shape in SHAPES:
        for size in SIZES:
            command = [sys.executable, __file__, "--one", shape, str(size)]
            m = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            each = m["load_s"] / size * 1e6
            print(f"{shape:9} {size:9,} {m['text_mb']:8.2f} {m['import_s']:9.3f} {m['load_s']:8.3f}", end=" ")
            print(f"{each:8.1f} {m['normal_form_s']:9.3f} {m['peak_mb']:8.1f}")


if __name__ == "__main__":
    main()
