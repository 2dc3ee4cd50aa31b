"""The rules of engines: what a version needs, and what may stand in its options and arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence

from servestate.planner.spec.characters import shorten
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.engine_options import OPTIONS, VllmOptions, owned_by, tensor_parallel
from servestate.planner.spec.report import Report
from servestate.planner.spec.site import ModelVersion, Site, WorkloadType
from servestate.planner.spec.versions import Listed, engine_of, listed

PORT = "{port}"

_PATH = re.compile(r"/[!-~]*\Z")


def engines(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Each version has what its engine needs, and nothing that is for another engine."""
    for version in listed(site, endpoints):
        for problem, fix, field in _engine_problems(version.version):
            report.error("SS184", f"{version.name} {problem}", fix, *version.path, *field)


def _engine_problems(version: ModelVersion) -> list[tuple[str, str, tuple[str, ...]]]:
    problems: list[tuple[str, str, tuple[str, ...]]] = []
    if version.engine == "command":
        problems += _command_problems(version)
    else:
        if version.argv:
            problems.append((f"has argv, which engine {version.engine} does not take", "use args", ("argv",)))
        if not version.source:
            problems.append(("has no source", "add source: where the weights are, file://PATH", ()))
    if version.health_path and not _PATH.match(version.health_path):
        problems.append(("has a health_path that is no path", 'start it with "/"', ("health_path",)))
    return problems


def _command_problems(version: ModelVersion) -> list[tuple[str, str, tuple[str, ...]]]:
    """An image has a command of its own, and its container a port of its own."""
    if version.image:
        return []
    if not version.argv:
        return [("has the engine command and no argv", "add argv: the command as a list", ())]
    if not any(PORT in part for part in version.argv):
        fix = f"put {PORT} into argv: the port to listen on"
        return [(f"does not say where {PORT} goes", fix, ("argv",))]
    return []


def options_of_others(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Options of an engine that is not the version's would silently do nothing."""
    for version in listed(site, endpoints):
        engine = version.version.engine
        for other in OPTIONS:
            if other != engine and getattr(version.version, other) is not None:
                what = f"{version.name} has options of {other}, and its engine is {engine}"
                fix = f"move them to {engine}, or remove them" if engine in OPTIONS else "remove them"
                report.error("SS190", what, fix, *version.path, other)


def arguments(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Arguments that are the planner's own, in the catalogue and in overrides."""
    for version in listed(site, endpoints):
        _owned(version.version.engine, version.version.args, version.name, version.path, report)
    for address, override in site.overrides.items():
        if override.args:
            for engine in _engines_at(address, site, endpoints):
                _owned(engine, override.args, f"the override of {address}", ("overrides", address), report)


def _engines_at(address: str, site: Site, endpoints: Sequence[Endpoint]) -> list[str]:
    """The engines of an endpoint's entities, or of one entity."""
    name, _, entity = address.partition("/")
    there = (one for endpoint in endpoints if endpoint.name == name for one in endpoint.entities)
    return sorted({engine_of(site, one) for one in there if entity in ("", one.name)} - {""})


def _owned(engine: str, args: Sequence[str], name: str, path: tuple[str, ...], report: Report) -> None:
    for index, arg in enumerate(args):
        instead = owned_by(engine, arg)
        if instead is not None:
            why = "has a place of its own" if instead else "servestate sets by itself"
            what = f"the args of {name} hold {shorten(arg.partition('=')[0])}, which {why}"
            report.error("SS191", what, _instead(engine, instead), *path, "args", index)


def _instead(engine: str, instead: str) -> str:
    if not instead:
        return "remove it"
    if instead in OPTIONS[engine].model_fields:
        return f"write {engine}: {{{instead}: …}} in the model's version"
    return f"use the key {instead}"


def parallelism(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """vLLM uses exactly the GPUs it gets, and no more of them than its share. Without GPUs it runs on the
    CPU, where its ways to use several are a matter of its own."""
    for version in listed(site, endpoints):
        if version.version.engine == "vllm":
            for name, kind in version.kinds:
                if kind.gpus:
                    _gpus(version, name, kind, report)


def _gpus(version: Listed, name: str, kind: WorkloadType, report: Report) -> None:
    options = version.version.vllm or VllmOptions()
    pipeline, data = options.pipeline_parallel_size or 1, options.data_parallel_size or 1
    tensor = tensor_parallel(kind.gpus, options.model_dump(exclude_none=True))
    if tensor * pipeline * data != kind.gpus:
        what = (
            f"{version.name} would use GPUs for tensor {tensor} × pipeline {pipeline} × data {data} ="
            f" {tensor * pipeline * data}, and {name} has {kind.gpus}"
        )
        fix = f"make the three multiply to {kind.gpus}, or leave tensor_parallel_size out"
        report.error("SS194", what, fix, *version.path, "vllm")
    share = options.gpu_memory_utilization
    if share is not None and share > kind.gpu_fraction:
        what = f"{version.name} takes {share:g} of each GPU, and {name} gives it {kind.gpu_fraction:g}"
        fix = "lower it, or leave it out: it follows from gpu_fraction"
        report.error("SS194", what, fix, *version.path, "vllm", "gpu_memory_utilization")
