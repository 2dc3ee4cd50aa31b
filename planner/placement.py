"""Where each launch goes: host and GPUs, what must stop first, or why it does not fit.

For every launch the mildest way is taken that works on any host it may run on:

    free       the GPUs are free now                                      surge
    freed      something that ends anyway, waiting for nothing, holds them  surge, later
    passed on  another endpoint's old instance holds them                  surge, after that one has moved
    vacated    its own endpoint's old instances hold them                  recreate: a gap without an answer

A person may forbid the last (`strategy: surge`) or demand it (`strategy: recreate`). The largest launches
choose first, ties by address, so the same arguments give the same plan. It is a greedy choice: where GPUs are
scarce and of unequal sizes there may be a way that it does not find; it then says what stands in the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from servestate.planner.address import InstanceAddress
from servestate.planner.asked import asked
from servestate.planner.claims import Books, GpuKey, Holder, room, suffices
from servestate.planner.diagnostics import Diagnostic
from servestate.planner.fit import Estimate, estimate, explain
from servestate.planner.launch import HERE, LaunchSpec, Placement
from servestate.planner.match import Match, Need
from servestate.planner.placed import Placed
from servestate.planner.plural import counted
from servestate.planner.surroundings import Gpu, Host, ImageFacts, Surroundings

_IDLE_SHARE = 0.05
"""The share of a GPU's memory that may be in use while it counts as free: drivers and displays take some."""


class _Way(IntEnum):
    """How a GPU becomes available; the lowest that works is taken."""

    FREE = 0
    FREED = 1
    PASSED_ON = 2
    VACATED = 3
    NEVER = 9


@dataclass(frozen=True, slots=True)
class _Offer:
    """What one host offers to one launch."""

    host: str
    way: _Way
    gpus: tuple[str, ...]
    displaced: tuple[Holder, ...]
    fit: Estimate | None
    left: int


@dataclass(slots=True)
class Placer:
    """Places the launches of one plan, one after the other. `crowd` counts the instances on each host;
    `refused` collects why some launches cannot be placed."""

    books: Books
    surroundings: Surroundings
    crowd: dict[str, int]
    refused: list[Diagnostic] = field(default_factory=list)
    _kept: set[InstanceAddress] = field(default_factory=set)
    _together: dict[InstanceAddress, set[InstanceAddress]] = field(default_factory=dict)
    _behind: dict[InstanceAddress, set[Holder]] = field(default_factory=dict)
    _earlier: dict[InstanceAddress, tuple[InstanceAddress, ...]] = field(default_factory=dict)
    _waits: dict[str, set[Holder]] = field(default_factory=lambda: defaultdict(set))
    _displaced: dict[InstanceAddress, set[Holder]] = field(default_factory=dict)
    _needs: dict[str, set[Holder]] = field(default_factory=lambda: defaultdict(set))
    _loads: dict[GpuKey, list[InstanceAddress]] = field(default_factory=lambda: defaultdict(list))

    def place(self, matches: Sequence[Match]) -> dict[InstanceAddress, Placed]:
        """Where every launch among `matches` goes; what cannot be placed is in `refused` instead."""
        for match in matches:
            old = {i.address for i in match.old}
            self._together.update(dict.fromkeys(old, old))
            if match.need not in (Need.LAUNCH, Need.AWAIT):
                continue
            if match.present is not None:  # it runs already, and may be loading whatever else is placed when
                self._note_load(match.use, match.present)
            if match.entity.timings.surge:
                self._kept |= old
        order = [m for m in matches if m.need is Need.LAUNCH]
        order.sort(key=lambda m: (-_gpus(m), -_spec(m).gpu_fraction, m.use))
        self.books.free_first(address for m in order for address in _forced(m))
        return self._in_turn({m.use: found for m in order if (found := self._one(m)) is not None})

    def _in_turn(self, placed: dict[InstanceAddress, Placed]) -> dict[InstanceAddress, Placed]:
        """The launches with the loads that each one waits out, judged when every place is known: what was
        vacated after a launch had been placed waits for no publication any more. Of two on one GPU one waits
        out the other, unless it cannot start at all before that is ready."""
        follows: dict[InstanceAddress, list[InstanceAddress]] = {use: [] for use in placed}
        for use in placed:
            earlier = self._earlier.get(use, ())
            first = self._follows(use, earlier)
            behind = set().union(*(self._behind.get(a, ()) for a in first))
            self._behind.setdefault(use, set()).update(behind)
            self._waits[use.endpoint] |= behind
            follows[use] += first
            for later in earlier:
                if later not in first and not self._needs_publication(later, use.endpoint):
                    follows[later].append(use)
        return {use: _following(one, follows[use]) for use, one in placed.items()}

    def _needs_publication(self, use: InstanceAddress, endpoint: str) -> bool:
        """Whether a launch cannot start unless the endpoint is published. One that only waits out a load that
        needs it is free as soon as that load is given up."""
        return endpoint in self._awaited(self._displaced.get(use, ()), self._needs)

    def _one(self, match: Match) -> Placed | None:
        spec = _spec(match)
        if match.present is not None:  # it runs already and is only taken over
            return Placed(match.present)
        forced = _forced(match)
        if spec.provider == "process" and not spec.gpus:
            return Placed(HERE, vacates=forced)
        offers = [offer for host in match.entity.hosts if (offer := self._offer(host, match)) is not None]
        if not offers:
            reasons = [self._why_not(host, match) for host in match.entity.hosts]
            self.refused.append(_refusal(match, reasons, self._fix(match)))
            return None
        before = {i.placement.host for i in match.old}
        best = min(
            offers, key=lambda o: (o.way, o.host not in before, o.left, self.crowd.get(o.host, 0), o.host)
        )
        return self._take(match, best, forced)

    def _take(self, match: Match, offer: _Offer, forced: tuple[InstanceAddress, ...]) -> Placed:
        spec = _spec(match)
        placement = Placement(offer.host, offer.gpus, spec.gpu_fraction if offer.gpus else 1.0)
        vacated = set(forced)
        if offer.way is _Way.VACATED:
            vacated |= {h.address for h in offer.displaced if h.waits_for == match.use.endpoint}
            vacated |= {i.address for i in match.old}
            # Whole entities at a time: what is left of one is out of the routes with the rest of it.
            vacated = vacated.union(*(self._together.get(address, ()) for address in vacated))
            self.books.free_first(vacated)
        loads = [a for gpu in placement.gpus for a in self._loads[placement.host, gpu]]
        self._earlier[match.use] = tuple(dict.fromkeys(loads))
        follows = self._follows(match.use, self._earlier[match.use])
        displaced = {h for h in offer.displaced if self.books.awaits(h)}
        self._displaced[match.use] = displaced
        self._needs[match.use.endpoint] |= displaced
        behind = displaced.union(*(self._behind.get(a, ()) for a in follows))
        self._behind[match.use] = behind
        self._waits[match.use.endpoint] |= behind
        self.books.claim(Holder(match.use, placement))
        self._note_load(match.use, placement)
        self.crowd[offer.host] = self.crowd.get(offer.host, 0) + 1
        return Placed(
            placement,
            tuple(sorted(vacated)),
            tuple(sorted({h.stop for h in offer.displaced})),
            remarks=tuple(self._remarks(match, offer, placement)),
        )

    def _follows(self, use: InstanceAddress, loads: Sequence[InstanceAddress]) -> tuple[InstanceAddress, ...]:
        """The earlier loads on the same GPUs that a launch waits out. One that itself waits until the
        launch's endpoint is published comes later, and must not be waited for."""
        return tuple(
            a for a in loads if use.endpoint not in self._awaited(self._behind.get(a, ()), self._waits)
        )

    def _note_load(self, address: InstanceAddress, placement: Placement) -> None:
        for gpu in placement.gpus:
            self._loads[placement.host, gpu].append(address)

    def _offer(self, name: str, match: Match) -> _Offer | None:
        """The mildest way onto that host, None where there is none."""
        host = self._host(name, match)
        if host is None or self._host_trouble(host, match):
            return None
        spec = _spec(match)
        if not spec.gpus:
            return _Offer(name, _Way.FREE, (), (), None, 0)
        candidates = sorted(
            (self._way(name, gpu, match), gpu.id not in _gpus_before(match, name), -len(held), index, gpu)
            for index, gpu in enumerate(host.gpus)
            for held in [self.books.of((name, gpu.id))]
            if self._usable(host, gpu, match)
        )
        chosen = [c for c in candidates if c[0] is not _Way.NEVER][: spec.gpus]
        if len(chosen) < spec.gpus:
            return None
        way = max(c[0] for c in chosen)
        gpus = tuple(c[4].id for c in chosen)
        # Not by address: a stray may wear that of a recorded instance, and both have to stop.
        displaced = dict.fromkeys(
            h
            for needed, *_, gpu in chosen
            for h in self.books.of((name, gpu.id))
            if needed > _Way.FREE and self._way_of(h, match) <= needed
        )
        free = sum(not self.books.of((name, gpu.id)) for gpu in host.gpus)
        fit = self._fit(match, min(c[4].memory for c in chosen))
        return _Offer(name, way, gpus, tuple(displaced), fit, free - len(gpus))

    def _host(self, name: str, match: Match) -> Host | None:
        """What is known of a host. One that was not asked has at least the GPUs that the entity had there."""
        known = self.surroundings.hosts.get((_spec(match).provider, name))
        if known is not None:
            return known
        gpus = _gpus_before(match, name)
        if _spec(match).gpus and not gpus:
            return None
        return Host(name, tuple(Gpu(id, 0) for id in gpus))

    def _host_trouble(self, host: Host, match: Match) -> str:
        spec = _spec(match)
        if host.trouble:
            return host.trouble
        if spec.gpus and host.gpu_trouble:
            return host.gpu_trouble
        if spec.container is not None and (host.name, spec.container.image) in self.surroundings.images:
            return _image_trouble(
                self.surroundings.images[host.name, spec.container.image], spec.container.digest
            )
        return ""

    def _usable(self, host: Host, gpu: Gpu, match: Match) -> bool:
        return not self._gpu_trouble(host.name, gpu, match)

    def _gpu_trouble(self, host: str, gpu: Gpu, match: Match) -> str:
        """Why nothing of ours may be put on the GPU whoever of ours lets go of it."""
        if gpu.fault:
            return gpu.fault
        if gpu.holders:
            return f"held by {', '.join(gpu.holders)}"
        fit = self._fit(match, gpu.memory)
        if fit is not None and gpu.memory and not fit.fits:
            return explain(fit)
        ours = bool(self.books.of((host, gpu.id))) or (host, gpu.id) in self.books.before
        if gpu.used is None or ours:
            return ""
        free = gpu.memory - gpu.used
        short = fit.missing(free) if fit is not None else 0
        if short or (fit is None and gpu.used > _IDLE_SHARE * gpu.memory):
            used, total = _gib(gpu.used), _gib(gpu.memory)
            return f"{used} of its {total} GiB are in use by something that servestate did not start"
        return ""

    def _fit(self, match: Match, memory: int) -> Estimate | None:
        spec = _spec(match)
        facts = self.surroundings.models.get(spec.source)
        return estimate(facts, asked(spec), memory) if facts is not None and memory else None

    def _way(self, host: str, gpu: Gpu, match: Match) -> _Way:
        """The mildest way in which enough of the GPU becomes available."""
        held = self.books.of((host, gpu.id))
        if not held:  # most are, on a large site: every launch looks at every GPU
            return _Way.FREE
        needed = _spec(match).gpu_fraction
        for way in _Way:
            staying = [h for h in held if self._way_of(h, match) > way]
            if suffices(room(staying), needed):
                return way
        return _Way.NEVER

    def _way_of(self, holder: Holder, match: Match) -> _Way:
        """In which way a holder would let go of a GPU for this launch."""
        own = match.use.endpoint
        if not holder.stop:
            return _Way.NEVER
        if holder.waits_for and holder.address in _forced(match):
            return _Way.FREE  # whatever the launch is given, it starts after that one has stopped
        awaited = self.books.awaits(holder)
        if not awaited:
            return _Way.FREED
        if awaited == own:
            kept = match.entity.timings.surge or holder.address in self._kept
            return _Way.NEVER if kept else _Way.VACATED
        return _Way.NEVER if own in self._awaited([holder], self._waits) else _Way.PASSED_ON

    def _awaited(self, holders: Iterable[Holder], waits: Mapping[str, set[Holder]]) -> set[str]:
        """The endpoints whose publication the steps that end these wait for, directly or not, where those of
        an endpoint wait for the end of its `waits`."""
        found: set[str] = set()
        queue = list(holders)
        while queue:
            endpoint = self.books.awaits(queue.pop())
            if endpoint and endpoint not in found:
                found.add(endpoint)
                queue += waits.get(endpoint, ())
        return found

    def _remarks(self, match: Match, offer: _Offer, placement: Placement) -> Iterator[str]:
        spec = _spec(match)
        if offer.gpus:
            several = len(offer.gpus) > 1
            share = f", {placement.fraction:g} of {'each' if several else 'it'}"
            gpus = f"GPU{'s' * several} {', '.join(offer.gpus)}{share * (placement.fraction != 1)}"
            yield f"on {offer.host}, {gpus}"
        if offer.fit is not None:
            yield explain(offer.fit)
        elif offer.gpus:
            why = self.surroundings.model_troubles.get(spec.source, "its headers were not read")
            yield f"whether it fits is not estimated: {why}"
        yield from self._chosen(match, offer)

    def _chosen(self, match: Match, offer: _Offer) -> Iterator[str]:
        """Why the order is what it is, where it was not simply free."""
        who = ", ".join(sorted({str(h.address) for h in offer.displaced}))
        match offer.way:
            case _Way.VACATED:
                known = self._host(offer.host, match)
                total = len(known.gpus) if known is not None else len(offer.gpus)
                held = len({key for key in self.books.before if key[0] == offer.host})
                yield f"{held} of {counted(total, 'GPU')} on {offer.host} in use: stops {who} first"
            case _Way.FREED | _Way.PASSED_ON:
                yield f"starts once {who} has stopped"
            case _:
                return

    def _why_not(self, name: str, match: Match) -> str:
        """Why a host takes a launch in no way."""
        host = self._host(name, match)
        if host is None:
            return f"{name}: its GPUs are not known"
        if trouble := self._host_trouble(host, match):
            return f"{name}: {trouble}"
        if not host.gpus:
            return f"{name}: it has no GPU"
        lines = [self._why_not_gpu(name, gpu, match) for gpu in host.gpus]
        needed = _spec(match).gpus
        head = f"{name}: {counted(needed, 'GPU')} needed, it has {len(host.gpus)}"
        return "\n".join([head, *(f"  GPU {line}" for line in lines)])

    def _why_not_gpu(self, host: str, gpu: Gpu, match: Match) -> str:
        if trouble := self._gpu_trouble(host, gpu, match):
            return f"{gpu.id}: {trouble}"
        if self._way(host, gpu, match) is not _Way.NEVER:
            return f"{gpu.id}: free for it"
        staying = [h for h in self.books.of((host, gpu.id)) if self._way_of(h, match) is _Way.NEVER]
        circular = any(self.books.awaits(h) not in ("", match.use.endpoint) for h in staying)
        because = f", waiting for {match.use.endpoint} itself" if circular else ""
        wanted = [h for h in staying if h.address in self._behind]
        held = [h for h in staying if h not in wanted]
        told = [f"held by {', '.join(sorted(str(h.address) for h in held))}{because}"] if held else []
        told += (
            [f"given to {', '.join(sorted(str(h.address) for h in wanted))} by this plan"] if wanted else []
        )
        return f"{gpu.id}: {', '.join(told)}"

    def _fix(self, match: Match) -> str:
        """What to do about a launch that fits nowhere."""
        known = [host for name in match.entity.hosts if (host := self._host(name, match)) is not None]
        gpus = [gpu for host in known for gpu in host.gpus if not self._host_trouble(host, match)]
        if not _spec(match).gpus:
            return "make one of its hosts answer, or allow others"
        if not gpus:
            return "make its hosts' GPUs known: install the driver, or declare `gpus` in servestate.providers"
        fits = [fit for gpu in gpus if (fit := self._fit(match, gpu.memory)) is not None]
        if fits and not any(fit.fits for fit in fits):
            return "do what the lines above say of each GPU, or use larger ones"
        if match.entity.timings.surge:
            return "allow its old instance to stop first: strategy: recreate; or free GPUs"
        return (
            "free GPUs, allow other hosts, share GPUs (gpu_fraction), or let an old one stop first: recreate"
        )


def _following(one: Placed, loads: Sequence[InstanceAddress]) -> Placed:
    if not loads:
        return one
    told = f"loads after {', '.join(map(str, loads))}: never two at once on one GPU"
    return replace(one, follows=tuple(loads), remarks=(*one.remarks, told))


def _spec(match: Match) -> LaunchSpec:
    assert isinstance(match.entity.spec, LaunchSpec), "only what is launched is placed"
    return match.entity.spec


def _forced(match: Match) -> tuple[InstanceAddress, ...]:
    """What a launch vacates because somebody wants it so; nothing where it runs and is only taken over."""
    demanded = match.entity.timings.recreate and match.present is None
    return tuple(i.address for i in match.old) if demanded else ()


def _gpus(match: Match) -> int:
    return _spec(match).gpus


def _gpus_before(match: Match, host: str) -> tuple[str, ...]:
    """The GPUs that instances of this entity had on that host."""
    return tuple(dict.fromkeys(g for i in match.old if i.placement.host == host for g in i.placement.gpus))


def _image_trouble(facts: ImageFacts, digest: str) -> str:
    if facts.digest == digest and not facts.trouble:
        return ""
    if facts.portable:
        return ""  # by digest it can be pulled there, whatever the name means there
    return (
        facts.trouble or f"the image there is another one, {facts.digest[:19]}…, and no registry has this one"
    )


def _refusal(match: Match, reasons: Iterable[str], fix: str) -> Diagnostic:
    what = f"{match.use.of} does not fit on any host that it may run on"
    if not _spec(match).gpus:
        what = f"{match.use.of} cannot run on any of its hosts"
    return Diagnostic("SS310", what, fix, detail="\n".join(reasons))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
