"""Desired -> launch specs: which engine, source and provider each served entity needs, or why it has none.

Uses the site block's catalogue (`models`), its reading of `workload_type`s and its overrides by address.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.external import external_spec
from servestate.planner.launch import LOCAL, Container, LaunchSpec, Mount, Scalar, Spec
from servestate.planner.policies import written_policy
from servestate.planner.revision import canonical_json, digest, revision
from servestate.planner.served_name import served_name
from servestate.planner.spec.bundle import Desired, DesiredEndpoint
from servestate.planner.spec.endpoint import ServedEntity
from servestate.planner.spec.normal import normal_form
from servestate.planner.spec.site import DockerProvider, ModelVersion, Site
from servestate.planner.throughput import NOTHING_KNOWN, Catalogue, throughput_problems
from servestate.planner.timings import Timings, extra_args, extra_hosts, timings


@dataclass(frozen=True, slots=True)
class ResolvedEntity:
    """A served entity with all that is needed to run it. `weight` is its percentage of the traffic, `hosts`
    are those it may run on."""

    name: str
    weight: int
    spec: Spec
    revision: str
    timings: Timings
    hosts: tuple[str, ...] = (LOCAL,)


@dataclass(frozen=True, slots=True)
class ResolvedEndpoint:
    """An endpoint ready to be planned. `block` is the canonical JSON of its normal form; entities are in
    declared order; `protected` is `lifecycle.prevent_destroy`; `traffic` is the site's policy for it, as
    `written_policy` gives it."""

    name: str
    key: str
    block: str
    entities: tuple[ResolvedEntity, ...]
    protected: bool = False
    traffic: str = ""


@dataclass(frozen=True, slots=True)
class Resolved:
    """All desired endpoints of one bundle, by name. `digest` covers everything a plan depends on."""

    bundle: str
    endpoints: tuple[ResolvedEndpoint, ...]
    digest: str


@dataclass(slots=True)
class _Findings:
    """Collects, so that one run reports everything."""

    desired: Desired
    found: list[Diagnostic] = field(default_factory=list)

    def error(self, code: str, endpoint: str, path: tuple[str | int, ...], what: str, fix: str) -> None:
        where = self.desired.where(endpoint, *path)
        self.found.append(Diagnostic(code, what, fix, where))


def resolve(
    desired: Desired, supported_providers: frozenset[str], catalogue: Catalogue = NOTHING_KNOWN
) -> Resolved:
    """Every endpoint with its launch specs. `catalogue` says of foundation models in which steps throughput
    is given. Raises InvalidInput with all that cannot be resolved."""
    findings = _Findings(desired)
    for endpoint in desired.endpoints:
        for problem in throughput_problems(endpoint.spec, desired.site, catalogue):
            findings.error(problem.code, endpoint.spec.name, problem.path, problem.what, problem.fix)
    endpoints = tuple(_endpoint(e, desired.site, findings, supported_providers) for e in desired.endpoints)
    if findings.found:
        raise InvalidInput(findings.found)
    facts = [
        [e.block, e.protected, [_facts(entity) for entity in e.entities], *told_of_traffic(e)]
        for e in endpoints
    ]
    return Resolved(desired.bundle, endpoints, digest([desired.bundle, facts]))


def told_of_traffic(endpoint: ResolvedEndpoint) -> tuple[str, ...]:
    """The policy, for a digest: nothing where there is none, so that digests of before stay as they were."""
    return (endpoint.traffic,) if endpoint.traffic else ()


def _facts(entity: ResolvedEntity) -> list[object]:
    t = entity.timings  # not astuple(): it copies, and a large bundle has tens of thousands of them
    return [
        entity.revision,
        entity.weight,
        t.ready_timeout_s,
        t.drain_timeout_s,
        t.stop_grace_s,
        t.recreate,
        t.surge,
        entity.hosts,
    ]


def _endpoint(
    endpoint: DesiredEndpoint, site: Site, findings: _Findings, providers: frozenset[str]
) -> ResolvedEndpoint:
    spec = endpoint.spec
    weights = spec.weights
    entities: list[ResolvedEntity] = []
    for index, entity in enumerate(spec.entities):
        launch, timing = _entity(spec.name, index, entity, site, findings, providers)
        if launch is not None:
            hosts = _hosts(site, spec.name, entity, launch)
            weight = weights.get(entity.name, 0)
            entities.append(ResolvedEntity(entity.name, weight, launch, revision(launch), timing, hosts))
    protected = spec.lifecycle is not None and spec.lifecycle.prevent_destroy
    block = canonical_json(normal_form(spec))
    traffic = written_policy(site.traffic.get(spec.name))
    return ResolvedEndpoint(spec.name, endpoint.key, block, tuple(entities), protected, traffic)


def _entity(
    endpoint: str,
    index: int,
    entity: ServedEntity,
    site: Site,
    findings: _Findings,
    providers: frozenset[str],
) -> tuple[Spec | None, Timings]:
    if entity.external_model is not None:
        return external_spec(entity.external_model), timings(site, endpoint, entity.name)
    version = _model_version(endpoint, index, entity, site, findings)
    if version is None:
        return None, Timings()
    task, model = version
    provider = _provider(endpoint, index, entity, site, findings, providers)
    if provider is None:
        return None, Timings()
    if provider == "docker" and not model.image:
        path = ("config", "served_entities", index, "entity_name")
        what = f'entity "{entity.name}" of "{endpoint}" runs in a container and its model names no image'
        findings.error("SS204", endpoint, path, what, "add image: NAME:TAG to the model's version")
        return None, Timings()
    spec = _launch_spec(entity, task, model, site, extra_args(site, endpoint, entity.name))
    return spec, timings(site, endpoint, entity.name, model)


def _model_version(
    endpoint: str, index: int, entity: ServedEntity, site: Site, findings: _Findings
) -> tuple[str, ModelVersion] | None:
    name, wanted = entity.entity_name, entity.entity_version
    path = ("config", "served_entities", index, "entity_name")
    if name.startswith("file://"):
        return "", ModelVersion(engine="llamacpp", source=name)
    model = site.models.get(name)
    if model is None:
        findings.error(
            "SS201",
            endpoint,
            path,
            f'entity "{entity.name}" of "{endpoint}" names the model "{name}", which this site does not know',
            f"declare it under servestate.models: {_list(site.models)}, or name a file: file://PATH.gguf",
        )
        return None
    if wanted in model.versions:
        return model.task, model.versions[wanted]
    findings.error(
        "SS202",
        endpoint,
        (*path[:-1], "entity_version"),
        f'model "{name}" has no version "{wanted}" in this site',
        f"use one of its versions ({', '.join(sorted(model.versions)) or 'none declared'}) or declare it "
        f"under servestate.models",
    )
    return None


def _list(names: object) -> str:
    known = sorted(names) if isinstance(names, dict) else []
    return f"it has {', '.join(known)}" if known else "it is empty"


def _provider(
    endpoint: str,
    index: int,
    entity: ServedEntity,
    site: Site,
    findings: _Findings,
    providers: frozenset[str],
) -> str | None:
    kind = entity.workload_type
    path = ("config", "served_entities", index, "workload_type")
    provider = site.workload_types[kind].provider
    if provider in providers:
        return provider
    findings.error(
        "SS203",
        endpoint,
        path,
        f'workload type {kind} means provider "{provider}", which is not supported yet',
        f"map {kind} to one of {', '.join(sorted(providers))} under servestate.workload_types",
    )
    return None


def _launch_spec(
    entity: ServedEntity, task: str, version: ModelVersion, site: Site, extra: tuple[str, ...]
) -> LaunchSpec:
    placed = site.workload_types[entity.workload_type]
    args = version.argv + version.args if version.engine == "command" else version.args
    env = {**version.env, **entity.environment_vars}
    return LaunchSpec(
        provider=placed.provider,
        engine=version.engine,
        model=served_name(
            version.engine, entity.entity_name or entity.name, version.source, placed.provider == "docker"
        ),
        source=version.source,
        task=task,
        args=args + extra,
        env=tuple(sorted(env.items())),
        health_path=version.health_path or _HEALTH_PATHS.get(version.engine, "/health"),
        options=_options(version),
        gpus=placed.gpus,
        gpu_fraction=placed.gpu_fraction if placed.gpus else 1.0,
        python=version.python if placed.provider == "process" else "",
        container=_container(version, placed.gpus) if placed.provider == "docker" else None,
    )


_HEALTH_PATHS = {"mlflow": "/ping"}
"""Where it is not `/health`."""


def _options(version: ModelVersion) -> tuple[tuple[str, Scalar], ...]:
    """The typed options that were given, by name."""
    block = getattr(version, version.engine, None)
    return tuple(sorted(block.model_dump(exclude_none=True).items())) if block is not None else ()


_SHM = {"vllm": 2**30}
"""Bytes of shared memory that an engine's processes pass images and audio through; Docker gives 64 MiB."""

_SHM_FOR_SEVERAL_GPUS = 10 * 2**30
"""Workers of one model also exchange activations through it."""


def _shared_memory(engine: str, gpus: int) -> int:
    if engine not in _SHM:
        return 0
    return _SHM_FOR_SEVERAL_GPUS if gpus > 1 else _SHM[engine]


def _container(version: ModelVersion, gpus: int) -> Container:
    given = version.container
    defaults = Container(version.image)
    return Container(
        image=version.image,
        user=given.user,
        memory=given.memory or 0,
        cpus=given.cpus or 0.0,
        pids=given.pids or defaults.pids,
        shm=given.shm_size or _shared_memory(version.engine, gpus),
        network=given.network or defaults.network,
        mounts=tuple(Mount(m.source, m.target, m.read_only) for m in given.mounts),
        read_only=given.read_only,
        port=given.port or defaults.port,
    )


def _hosts(site: Site, endpoint: str, entity: ServedEntity, spec: Spec) -> tuple[str, ...]:
    """Where it may run: what an override says, else its workload type, else every host of its provider."""
    if spec.provider != "docker":
        return (LOCAL,)
    declared = site.providers.docker or DockerProvider()
    placed = site.workload_types[entity.workload_type]
    named = extra_hosts(site, endpoint, entity.name) or placed.hosts
    return tuple(sorted(named or declared.by_name))
