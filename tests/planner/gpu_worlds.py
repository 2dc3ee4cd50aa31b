"""Small random sites with GPUs, and every order in which a plan for one of them could be carried out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import LOCAL, LaunchSpec, Placement
from servestate.planner.live import Live, LiveStatus
from servestate.planner.plan import Plan
from servestate.planner.resolve import Resolved, ResolvedEntity
from servestate.planner.revision import revision
from servestate.planner.state import Phase, State
from servestate.planner.steps import AwaitReady, Launch, Node, PublishTable, Stop, Withdraw
from servestate.planner.surroundings import Gpu, Host, Surroundings
from servestate.planner.timings import Timings
from tests.planner.blocks import bundle, endpoint

GIB = 1 << 30
FRACTIONS = (1.0, 0.5, 0.5, 1 / 3, 0.6, 0.4)


def on_gpus(
    name: str,
    weight: int,
    version: str = "A",
    *,
    gpus: int = 1,
    fraction: float = 1.0,
    hosts: tuple[str, ...] = ("h1",),
    source: str = "",
    **timings: object,
) -> ResolvedEntity:
    """An entity that claims GPUs; `version` decides its revision, as all that it asks for does."""
    args = ("serve", "{port}", version)
    spec = LaunchSpec(
        "process", "command", f"model-{name}", source, args=args, gpus=gpus, gpu_fraction=fraction
    )
    allowed = hosts if gpus else (LOCAL,)
    return ResolvedEntity(name, weight, spec, revision(spec), Timings(**timings), allowed)  # type: ignore[arg-type]


def host(name: str, gpus: int, **facts: object) -> Host:
    """A host with that many GPUs of 80 GiB, all idle."""
    found = tuple(Gpu(str(i), 80 * GIB, used=0) for i in range(gpus))
    return Host(name, found, **facts)  # type: ignore[arg-type]


def surroundings(*hosts: Host, **facts: object) -> Surroundings:
    """A site of these hosts."""
    return Surroundings({("process", h.name): h for h in hosts}, **facts)  # type: ignore[arg-type]


@st.composite
def sites(draw: st.DrawFn) -> Surroundings:
    """At most three hosts with at most four GPUs each."""
    counts = draw(st.sampled_from([[1], [2], [2], [3], [4], [1, 1], [2, 1], [2, 2], [4, 2, 1]]))
    return surroundings(*(host(f"h{i}", count) for i, count in enumerate(counts, 1)))


@st.composite
def wishes(draw: st.DrawFn, site: Surroundings) -> Resolved:
    """What somebody may want of such a site, whether or not it fits."""
    names = draw(st.lists(st.sampled_from(["one", "two", "three"]), min_size=1, max_size=3, unique=True))
    blocks = []
    for name in names:
        several = draw(st.sampled_from([1, 1, 2]))
        entities = draw(
            st.lists(_entities(site), min_size=several, max_size=several, unique_by=lambda e: e.name)
        )
        weights = [100] if len(entities) == 1 else [60, 40]
        served = (replace(e, weight=w) for e, w in zip(entities, weights, strict=True))
        blocks.append(endpoint(name, *served))
    return bundle(*blocks)


@st.composite
def _entities(draw: st.DrawFn, site: Surroundings) -> ResolvedEntity:
    everywhere = tuple(sorted(name for _, name in site.hosts))
    strategy = draw(st.sampled_from(["", "", "", "", "", "recreate", "surge"]))
    return on_gpus(
        draw(st.sampled_from("ab")),
        0,
        draw(st.sampled_from("AB")),
        gpus=draw(st.sampled_from([1, 1, 1, 1, 2, 0])),
        fraction=draw(st.sampled_from(FRACTIONS)),
        hosts=draw(st.sampled_from([everywhere, everywhere, ("h1",)])),
        recreate=strategy == "recreate",
        surge=strategy == "surge",
        ready_timeout_s=3.0,
    )


def claims(live: Live) -> dict[str, Placement]:
    """What everything alive holds, by handle."""
    seen = (*live.instances.values(), *live.duplicates)
    return {s.handle: s.placement for s in seen if s.status is not LiveStatus.EXITED}


@dataclass
class Walk:
    """One way through a plan: steps start and end in an order drawn at random within what their edges allow,
    and each may fail. What must never be is in `wrong`, as it happens."""

    plan: Plan
    state: State
    live: Live
    rng: random.Random
    failing: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def run(self) -> list[str]:
        """Walk to the end; what went wrong on the way."""
        self._held: dict[object, Placement] = dict(claims(self.live))
        self._routed = {
            name: {a for t in r.targets for a in t.instances} for name, r in self.state.endpoints.items()
        }
        self._ready = {a for a, i in self.state.instances.items() if i.phase is Phase.READY}
        self._loading: dict[InstanceAddress, Placement] = {}
        nodes = {n.id: n for n in self.plan.nodes}
        waiting, running, ended, done = dict(nodes), {}, set(), set()
        self._look("at the start")
        while waiting or running:
            startable = [
                n for n in waiting.values() if done.issuperset(n.needs) and ended.issuperset(n.after)
            ]
            lost = [n for n in waiting.values() if any(i in ended and i not in done for i in n.needs)]
            choices = [*((self._start, n) for n in startable), *((self._end, n) for n in running.values())]
            if lost:  # what needs something that failed ends without having started
                for node in lost:
                    del waiting[node.id]
                    ended.add(node.id)
                    self._skip(node)
                continue
            if not choices:
                self.wrong.append(f"stuck: {sorted(waiting)}")
                break
            act, node = self.rng.choice(choices)
            if act == self._start:
                running[node.id] = waiting.pop(node.id)
                self._start(node)
            else:
                del running[node.id]
                ended.add(node.id)
                if self._end(node):
                    done.add(node.id)
            self._look(node.id)
        return self.wrong

    def _start(self, node: Node) -> None:
        match node.step:
            case Launch(address, _, _, _, placement):
                self._load(address, placement)
                self._held[self._key(address)] = placement
            case AwaitReady(address):
                if address not in self._loading:
                    self._load(address, self.state.instances[address].placement)
            case Stop(address) if any(address in routed for routed in self._routed.values()):
                if node.id.startswith("stop:"):
                    self.wrong.append(f"P3: {address} is stopped while requests are routed to it")

    def _key(self, address: InstanceAddress) -> object:
        """What is adopted is the very thing that is there."""
        seen = self.live.instances.get(address)
        return seen.handle if seen is not None and seen.status is LiveStatus.RUNNING else address

    def _load(self, address: InstanceAddress, placement: Placement) -> None:
        for other, taken in self._loading.items():
            if taken.host == placement.host and set(taken.gpus) & set(placement.gpus):
                self.wrong.append(f"{address} loads on a GPU on which {other} is loading")
        self._loading[address] = placement

    def _end(self, node: Node) -> bool:
        well = self.rng.random() >= self.failing
        match node.step:
            case Launch(address):
                if not well and self.rng.random() < 0.5:
                    del self._held[self._key(address)]  # else it acted and only its answer was lost
            case AwaitReady(address):
                del self._loading[address]
                if well:
                    self._ready.add(address)
                elif self.rng.random() < 0.5:
                    self._held.pop(self._key(address), None)  # else it could not be stopped either
            case Stop(_, _, handle) if well:
                self._held.pop(handle, None)
            case PublishTable(record) if well:
                self._routed[record.name] = {a for t in record.targets for a in t.instances}
                if not self._routed[record.name] <= self._ready:
                    self.wrong.append(f"P4: {record.name} is published before all of it is ready")
            case Withdraw(name) if well:
                self._routed[name.endpoint] = set()
        return well

    def _skip(self, node: Node) -> None:
        if isinstance(node.step, AwaitReady):
            self._loading.pop(node.step.address, None)

    def _look(self, moment: str) -> None:
        taken: Counter[tuple[str, str]] = Counter()
        for placement in self._held.values():
            for gpu in placement.gpus:
                taken[placement.host, gpu] += placement.fraction  # type: ignore[assignment]
        self.wrong += [f"P9: {gpu} is taken {n:g} times at {moment}" for gpu, n in taken.items() if n > 1.001]
        if self.plan.capacity:
            self._compare(taken, moment)

    def _compare(self, taken: Mapping[tuple[str, str], float], moment: str) -> None:
        peaks = {use.host: use.peak for use in self.plan.capacity}
        now = Counter(host for host, _ in taken)
        self.wrong += [
            f"P9: {n} GPUs of {host} are in use at {moment}, the plan says at most {peaks.get(host, 0)}"
            for host, n in now.items()
            if n > peaks.get(host, 0)
        ]
